import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from curation.publish.tars import read_sample
from curation.publish.writers import TarWriter


def header(name: str) -> bytes:
    info = tarfile.TarInfo(name)
    return info.tobuf(tarfile.USTAR_FORMAT)


def written(path: Path, pictures: dict[str, bytes]) -> pa.NativeFile:
    with TarWriter(path) as tar:
        for key, picture in pictures.items():
            tar.add(f"{key}.jpg", picture)
            tar.add(f"{key}.txt", key.encode())
    return pa.OSFile(str(path))


def test_each_sample_is_found_and_few_bytes_are_read(tmp_path: Path) -> None:
    pictures = {f"{n:012d}": bytes([n % 251]) * (n * 37 % 5000) for n in range(0, 3000, 3)}
    with written(tmp_path / "a.tar", pictures) as stream:
        for key in [*list(pictures)[:5], *list(pictures)[500:510], *list(pictures)[-5:]]:
            assert read_sample(stream, key) == {"jpg": pictures[key], "txt": key.encode()}
        for absent in ("000000000001", "000000002998", "999999999999"):
            with pytest.raises(KeyError):
                read_sample(stream, absent)

    class Counted(io.BytesIO):
        read_bytes = 0

        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            self.read_bytes += len(data)
            return data

        def size(self) -> int:
            return len(self.getbuffer())

    counted = Counted((tmp_path / "a.tar").read_bytes())
    assert read_sample(counted, "000000001500")["txt"] == b"000000001500"
    assert counted.read_bytes < counted.size() / 3


def test_a_picture_that_holds_headers_leads_nowhere_else(tmp_path: Path) -> None:
    hostile = b"".join(header(name) + bytes(512) for name in ("000000009999.jpg", "000000000000.jpg")) * 400
    pictures = {f"{n:012d}": hostile if n in (40, 41) else b"x" * 3000 for n in range(80)}
    with written(tmp_path / "a.tar", pictures) as stream:
        for key, picture in pictures.items():
            assert read_sample(stream, key)["jpg"] == picture
