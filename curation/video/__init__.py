"""Videos as pictures: frames sampled uniformly, captioned and exported as records of several images."""
