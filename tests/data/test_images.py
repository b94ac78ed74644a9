"""Images of rows: the forms they come in, and bytes that nobody should trust."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from forvalue_dagster.data.columns import Columns
from forvalue_dagster.data.files import DataFileError
from forvalue_dagster.data.images import (
    ImageFolder,
    ImageReferenceError,
    PictureError,
    decode_picture,
    image_digest,
)
from forvalue_dagster.data.read import read_rows
from tests.tiny_vision import picture

ONE, TWO = picture(1), picture(2)


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


ASKED = {"type": "text", "text": "What?"}
SAID = {"role": "assistant", "content": "a cat"}
PART = {"type": "image", "image": image_digest(ONE)}
# Every form of one conversation: an image and a question.
FORMS: dict[str, dict[str, Any]] = {
    "OpenAI": {
        "messages": [user({"type": "image_url", "image_url": {"url": data_uri(ONE)}}, ASKED), SAID]
    },
    "OpenAI, short": {
        "messages": [user({"type": "image_url", "image_url": data_uri(ONE)}, ASKED), SAID]
    },
    "chat, path": {"messages": [user({"type": "image", "path": "a/one.png"}, ASKED), SAID]},
    "chat, url": {"messages": [user({"type": "image", "url": "a/one.png"}, ASKED), SAID]},
    "chat, base64": {
        "messages": [
            user({"type": "image", "base64": base64.b64encode(ONE).decode()}, ASKED),
            SAID,
        ]
    },
    "chat and a column": {
        "messages": [
            user({"type": "image", "text": None}, ASKED),
            {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        ],
        "images": [ONE],
    },
    "LLaVA": {
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "a cat"},
        ],
        "image": "a/one.png",
    },
    "prompt and path": {"prompt": "What?", "response": "a cat", "image": "./a/one.png"},
    "prompt and bytes": {"prompt": "<image>What?", "response": "a cat", "images": [ONE]},
    "prompt and struct": {
        "prompt": "What?",
        "response": "a cat",
        "image": {"bytes": ONE, "path": "elsewhere.png"},
    },
    "struct with a path": {
        "prompt": "What?",
        "response": "a cat",
        "image": {"bytes": None, "path": "a/one.png"},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "one.png").write_bytes(ONE)
    (tmp_path / "secret.png").write_bytes(TWO)
    return tmp_path / "data"


def read(folder: Path, row: dict[str, Any], **options: Any) -> pl.DataFrame:
    """Read a row from a file: of JSON where it can hold it, else of Parquet."""
    try:
        (folder / "rows.jsonl").write_text(json.dumps(row))
        return read_rows(folder / "rows.jsonl", **options)
    except TypeError:
        pl.DataFrame([row]).write_parquet(folder / "rows.parquet")
        return read_rows(folder / "rows.parquet", **options)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_row(folder: Path, form: str) -> None:
    rows = read(folder, FORMS[form])
    assert json.loads(rows["messages"][0]) == [user(PART, ASKED), SAID]
    assert rows["images"].to_list() == [[ONE]]
    plain = read_rows([{"prompt": "What?", "response": "a cat", "image": ONE}])
    assert rows["sample_id"][0] == plain["sample_id"][0]
    # The bytes are kept once.
    assert not [n for n, t in rows.schema.items() if n != "images" and "Binary" in str(t)]


def test_the_content_hash_covers_the_pixels() -> None:
    rows = read_rows(
        [
            {"prompt": "What?", "response": "a cat", "image": ONE},
            {"prompt": "What?", "response": "a cat", "image": TWO},
            {"prompt": "What?", "response": "a cat"},
        ]
    )
    assert rows["sample_id"].n_unique() == 3
    assert rows["images"].to_list() == [[ONE], [TWO], None]


def test_several_images_have_their_places() -> None:
    row = {"prompt": "<image> or <image>, left or right", "response": "left", "images": [ONE, TWO]}
    (asked, _) = json.loads(read_rows([row])["messages"][0])
    kinds = [part.get("text", part.get("image")) for part in asked["content"]]
    assert kinds == [image_digest(ONE), " or ", image_digest(TWO), ", left or right"]


def test_a_named_column() -> None:
    row = {"prompt": "What?", "response": "a cat", "photo": ONE, "image": "not this"}
    assert read_rows([row], columns=Columns(images="photo"))["images"].to_list() == [[ONE]]


def test_text_alone_that_names_no_image_stays_text() -> None:
    row = {"prompt": "What does <image> mean in HTML?", "response": "nothing"}
    rows = read_rows([row])
    assert json.loads(rows["messages"][0])[0]["content"] == row["prompt"]
    assert rows["images"].to_list() == [None]


@pytest.mark.parametrize("form", ["chat, path", "LLaVA", "prompt and path"])
def test_a_missing_image_is_kept_as_missing(folder: Path, form: str) -> None:
    (folder / "a" / "one.png").unlink()
    rows = read(folder, FORMS[form])
    assert rows["images"].to_list() == [[None]]
    part = json.loads(rows["messages"][0])[0]["content"][0]
    assert part["image"] is None
    assert part["path"].endswith("a/one.png")


@pytest.mark.parametrize(
    "reference",
    [
        "../secret.png",
        "a/../../secret.png",
        "/etc/hostname",
        "file:///etc/hostname",
        "https://example.org/a.png",
        "s3://bucket/a.png",
        "a\\..\\secret.png",
        "link/secret.png",
        "",
        "a\0b",
        "loop",
        "a" * 5000,
        "n" * 300,  # longer than names are
        "n/" * 600 + "x",
    ],
)
def test_nothing_outside_of_the_folder_is_read(folder: Path, reference: str) -> None:
    (folder / "link").symlink_to(folder.parent)
    (folder / "loop").symlink_to("loop")
    row = {"prompt": "What?", "response": "a cat", "image": reference}
    with pytest.raises(DataFileError, match=r"row 0 \(line 1\): an image"):
        read(folder, row)
    rows = read(folder, row, on_bad_row="skip")
    assert rows["problem"].null_count() == 0
    assert rows["images"].to_list() == [None]


def test_a_uri_inside_the_folder_is_followed(folder: Path) -> None:
    row = {"prompt": "What?", "response": "a cat", "image": f"file://{folder}/a/one.png"}
    assert read(folder, row)["images"].to_list() == [[ONE]]
    bucket = ImageFolder("s3://bucket/images", {"one.png": ONE}.get)
    assert bucket.load("s3://bucket/images/one.png") == ONE
    assert bucket.load("two.png") is None
    with pytest.raises(ImageReferenceError, match="outside of s3://bucket/images"):
        bucket.load("s3://bucket/others/one.png")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "<image><image>", "response": "a", "images": [ONE]}, "1 images in the row's"),
        ({"messages": [user({"type": "image"}, ASKED), SAID]}, "0 images in the row's column"),
        ({"prompt": "What?", "response": "a", "image": "one.png"}, "rows in memory have no folder"),
        ({"prompt": "What?", "response": "a", "image": 7}, "an image is a int; expected bytes"),
        ({"prompt": "What?", "response": "a", "image": "data:image/png;base64,%"}, "is damaged"),
        (
            {"messages": [user(ASKED), {"role": "assistant", "content": [{"type": "image"}]}]},
            "0 images in the row's column and 1 places",
        ),
        (
            {
                "messages": [
                    user(ASKED),
                    {"role": "assistant", "content": [{"type": "image", "image": data_uri(ONE)}]},
                ]
            },
            "an assistant's turn holds an image",
        ),
    ],
)
def test_rows_that_cannot_be_read(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        read_rows([row])


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


GREY = Image.fromarray(np.linspace(0, 255, 48).reshape(6, 8).astype(np.uint8))
COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_kinds_of_files(kind: str) -> None:
    decoded = decode_picture(stored(COLOUR, kind))
    assert (decoded.mode, decoded.size) == ("RGB", (8, 6))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb_as_transformers_makes_them(mode: str) -> None:
    from transformers.image_utils import load_image

    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    data = stored(COLOUR.convert(mode), kind)
    expected = load_image(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(decode_picture(data)), np.asarray(expected))


def test_sixteen_bits_keep_their_upper_eight() -> None:
    deep = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
    decoded = decode_picture(stored(deep))
    np.testing.assert_array_equal(np.asarray(decoded)[..., 0], np.asarray(GREY))


def test_rotation_as_the_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    decoded = decode_picture(stored(COLOUR, exif=exif))
    np.testing.assert_array_equal(
        np.asarray(decoded), np.asarray(COLOUR.transpose(Image.Transpose.ROTATE_270))
    )


def png_header(width: int, height: int) -> bytes:
    def chunk(body: bytes) -> bytes:
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + zlib.compress(b"\0" * 99))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image_unreadable"),
        (b"<svg/>", "image_unreadable"),
        (ONE[: len(ONE) // 2], "image_unreadable"),
        (ONE[:40], "image_unreadable"),
        (png_header(0, 5), "image_unreadable"),
        (png_header(10_000, 10_000), "image_too_large"),
        (png_header(100_000, 100_000), "image_too_large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image_unreadable"),
        (stored(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "image_unreadable"),
    ],
    ids=["empty", "svg", "half", "cut", "flat", "large", "bomb", "eps", "floats"],
)
def test_bad_images_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError) as caught:
        decode_picture(data)
    assert caught.value.reason == reason


CUT = st.builds(lambda end, rest: ONE[:end] + rest, st.integers(0, len(ONE)), st.binary())


@given(st.binary(max_size=200) | CUT)
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    reason = None
    try:
        decode_picture(data)
    except PictureError as error:
        reason = error.reason
    assert reason in (None, "image_unreadable", "image_too_large")
