"""Read back the pictures that the download stage stored: JPEG, PNG or WebP of our own making."""

import numpy as np

from curation.errors import BadShardError


def decode_stored(data: bytes) -> np.ndarray:
    """Pixels of a stored picture: uint8 (h, w, 3), RGB. Raises BadShardError: we wrote it, so it must decode."""
    import cv2  # 0.2 s that only a task that decodes pictures should pay

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise BadShardError(f"a stored picture of {len(data)} bytes does not decode: the table is damaged")
    return np.ascontiguousarray(pixels[:, :, ::-1])
