"""Published heads, known by the hash of their file: what they measure, in which embedding space, where they are.

None of the weights comes with the package. A file of other bytes than these is a user's own head and says itself, in
the recipe or in its metadata, what it is.
"""

from typing import Literal, NamedTuple

Activation = Literal["relu", "identity"]
Output = Literal["sigmoid", "identity"]


class KnownHead(NamedTuple):
    """A published head. `space` is written as recipes write it: architecture/pretrained of open_clip."""

    column: str
    space: str
    hidden: Activation
    output: Output
    licence: str
    url: str


_AESTHETIC = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/"
_IMPROVED = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
_NSFW = "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/raw/main/"

KNOWN: dict[str, KnownHead] = {
    # aesthetic: about 1..10, no activation between the layers of the "MLP"
    "8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0": KnownHead(
        "aesthetic", "ViT-B-16/openai", "identity", "identity", "MIT", f"{_AESTHETIC}sa_0_4_vit_b_16_linear.pth"
    ),
    "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f": KnownHead(
        "aesthetic", "ViT-B-32/openai", "identity", "identity", "MIT", f"{_AESTHETIC}sa_0_4_vit_b_32_linear.pth"
    ),
    "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba": KnownHead(
        "aesthetic", "ViT-L-14/openai", "identity", "identity", "MIT", f"{_AESTHETIC}sa_0_4_vit_l_14_linear.pth"
    ),
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0": KnownHead(
        "aesthetic",
        "ViT-L-14/openai",
        "identity",
        "identity",
        "Apache-2.0",
        f"{_IMPROVED}sac%2Blogos%2Bava1-l14-linearMSE.pth",
    ),
    # punsafe: probability, 0..1; accuracy 0.96 on LAION's balanced 3,000 (LAION-5B's announcement)
    "905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a": KnownHead(
        "punsafe", "ViT-L-14/openai", "relu", "sigmoid", "MIT", f"{_NSFW}clip_autokeras_binary_nsfw.zip"
    ),
    "78715ab9d64485167e8c9ade3b8e6761a17a16c24d114bd47431ac1dab46462b": KnownHead(
        "punsafe", "ViT-B-32/openai", "relu", "sigmoid", "MIT", f"{_NSFW}clip_autokeras_nsfw_b32.zip"
    ),
    "fc4d70d2eea4e948d13bc27bf7114f5e8d3bd317eb01a4b49b35dcf1a3d672c6": KnownHead(
        "punsafe", "ViT-L-14/openai", "relu", "sigmoid", "MIT", "pull request 11 of CLIP-based-NSFW-Detector"
    ),
    "615f35e1364b40b14c30e770544345b82d8e558240692ad72eb8eafa466ef25c": KnownHead(
        "punsafe", "ViT-B-32/openai", "relu", "sigmoid", "MIT", "pull request 11 of CLIP-based-NSFW-Detector"
    ),
}
