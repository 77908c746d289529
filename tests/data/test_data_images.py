import gc
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageFile

from zoominnet.data.images import ImageError, decode_image, inspect_images, list_images, read_image_header

HEIGHT, WIDTH = 48, 64
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def save(
    path: Path, pixels: np.ndarray = PIXELS, mode: str | None = None, format: str | None = None, **options
) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, format=format, **options)
    return path


def as_array(image: torch.Tensor) -> np.ndarray:
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


def png_bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header claims side x side RGB pixels."""
    return png(side, side, 8, 2, b"")


def jpeg_bomb(path: Path) -> bytes:
    """A real JPEG whose frame header claims 65000 x 65000."""
    data = bytearray(save(path).read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_are_decoded_exactly(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert read_image_header(path)[:2] == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(as_array(decode_image(path)), PIXELS)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_f07_jpeg_modes_equal_pillow(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.jpg", mode=mode)
    expected = np.array(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(as_array(decode_image(path)), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_f07_other_modes_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", mode=mode)
    expected = np.array(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(as_array(decode_image(path)), expected)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_f07_16_bit_gray_keeps_the_high_byte(tmp_path: Path, suffix: str) -> None:
    gray = RNG.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    path = save(tmp_path / f"a.{suffix}", gray)
    np.testing.assert_array_equal(as_array(decode_image(path)), np.repeat((gray // 256)[..., None], 3, axis=2))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG by hand: Pillow writes no 16-bit colour. `rows` has a filter byte before each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    middle = b"".join(chunk(kind.encode(), data) for kind, data in chunks.items())
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + middle
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("channels", "colour"), [(2, 4), (3, 2), (4, 6)], ids=["gray and alpha", "RGB", "RGBA"])
def test_f07_16_bit_colour_keeps_the_high_byte(tmp_path: Path, channels: int, colour: int) -> None:
    values = RNG.integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path = tmp_path / "a.png"
    path.write_bytes(png(WIDTH, HEIGHT, 16, colour, rows))
    expected = (values >> 8).astype(np.uint8)[..., : 1 if channels == 2 else 3]
    np.testing.assert_array_equal(as_array(decode_image(path)), np.broadcast_to(expected, PIXELS.shape))


def test_f07_float_pixels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tiff", PIXELS[..., 0].astype(np.float32))
    with pytest.raises(ImageError, match=r"a\.tiff.*mode 'F'.*8-bit RGB"):
        decode_image(path)


def test_f07_png_named_jpg_works(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", format="PNG")
    assert read_image_header(path).format == "PNG"
    np.testing.assert_array_equal(as_array(decode_image(path)), PIXELS)


def test_a_drone_s_jpeg_with_a_preview_is_its_first_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    preview = Image.fromarray(PIXELS[::2, ::2])
    Image.fromarray(PIXELS).save(path, format="MPO", save_all=True, append_images=[preview])
    assert read_image_header(path).format == "MPO"
    np.testing.assert_array_equal(as_array(decode_image(path)), np.array(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {}), ("a.jpg", {"progressive": True}), ("a.png", {}), ("a.bmp", {}), ("a.webp", {"lossless": True})],
)
def test_f07_truncated_images_are_refused(tmp_path: Path, name: str, options: dict, share: float) -> None:
    path = save(tmp_path / name, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=name) as caught:
        decode_image(path)
    assert caught.value.verdict == "unreadable image"
    assert "\n" not in str(caught.value)


def test_pillow_s_switch_for_truncated_images_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.bmp")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
        decode_image(path)


def test_f07_a_jpeg_without_its_end_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg")
    data = path.read_bytes()
    assert data.endswith(b"\xff\xd9")
    path.write_bytes(data[:-2])
    with pytest.raises(ImageError, match=r"a\.jpg: cannot be decoded"):
        decode_image(path)


def test_f07_what_no_decoder_finds(tmp_path: Path) -> None:
    """Cut off with an end marker put on, or flipped bits in the pixels: wrong pixels and no error, as documented.

    Should this fail because a decoder has learnt to refuse them, correct decode_image's docstring and docs/faults.md.
    """
    path = save(tmp_path / "a.jpg")
    data, whole = path.read_bytes(), decode_image(path)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    for content in (data[: len(data) // 2] + b"\xff\xd9", bytes(flipped)):
        path.write_bytes(content)
        found = decode_image(path)
        assert found.shape == whole.shape
        assert not torch.equal(found, whole)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {}), ("a.jpg", {"progressive": True}), ("a.png", {}), ("a.bmp", {}), ("a.tiff", {}), ("a.webp", {})],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of every damaged TIFF tag
def test_f07_damaged_bytes_give_pixels_or_one_clear_error(tmp_path: Path, name: str, options: dict) -> None:
    """Random damage, mostly to the header, where parsers are weakest."""
    path = save(tmp_path / name, **options)
    data = path.read_bytes()
    messages = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)] if seed % 3 == 0 else data)
        for position in rng.integers(0, min(len(damaged), 120 if seed % 2 else len(damaged)), rng.integers(1, 9)):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            header, pixels = read_image_header(path), decode_image(path)
        except ImageError as error:
            messages.append(str(error))
        else:
            assert pixels.shape == (3, header.height, header.width)
            assert pixels.dtype == torch.uint8
    assert len(messages) > 5
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in messages)


@pytest.mark.slow
def test_f07_bad_images_leave_nothing_behind(tmp_path: Path) -> None:
    """500 bad images: memory and open files stay where they were."""
    big = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)  # 1.4 MB of pixels, to be seen
    jpeg, text = save(tmp_path / "a.jpg", big), tmp_path / "b.jpg"
    webp = save(tmp_path / "c.webp", big)
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size * 9 // 10])
    webp.write_bytes(webp.read_bytes()[: webp.stat().st_size * 9 // 10])
    text.write_text("no image at all")
    process = psutil.Process()

    def refuse(rounds: int) -> None:
        for _ in range(rounds):
            for path in (jpeg, text, webp, tmp_path / "gone.jpg", jpeg):
                with pytest.raises(ImageError):
                    decode_image(path)

    refuse(20)
    gc.collect()
    memory, files = process.memory_info().rss, process.num_fds()
    refuse(100)
    gc.collect()
    assert process.num_fds() == files
    # one leaked picture in 500 would go unseen, each of them leaked would be 560 MB
    assert process.memory_info().rss - memory < 30 * 2**20


def test_f07_names_that_cannot_be_opened(tmp_path: Path) -> None:
    """Each is an unusable image; an OSError would drop the whole data set."""
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    file = save(tmp_path / "a.jpg")
    for path in (tmp_path / ("x" * 300 + ".jpg"), folder, file / "b.jpg", tmp_path / "\udcff\ud800.jpg"):
        for read in (read_image_header, decode_image):
            with pytest.raises(ImageError):
                read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"no image at all\n" * 9, "not a readable JPEG"), (b"GIF89a" + bytes(50), "not a readable")],
)
def test_f07_files_that_are_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_image_header, decode_image):
        with pytest.raises(ImageError, match=rf"a\.jpg: .*{reason}"):
            read(path)


def test_f07_missing_file_and_named_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    for path in (tmp_path / "none.jpg", pipe):
        with pytest.raises(ImageError, match="no such image file") as caught:
            read_image_header(path)
        assert caught.value.verdict == "image file missing"


def test_f08_the_size_limit_is_in_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    assert read_image_header(path, max_pixels=WIDTH * HEIGHT).width == WIDTH
    for read in (read_image_header, decode_image):
        with pytest.raises(ImageError, match="64x48 px is over the limit") as caught:
            read(path, max_pixels=WIDTH * HEIGHT - 1)
        assert caught.value.verdict == "image over the size limit"


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_f08_a_huge_claim_is_refused_before_any_allocation(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(png_bomb(65000) if kind == "png" else jpeg_bomb(tmp_path / "a.jpg"))
    with pytest.raises(ImageError, match="bomb") as caught:
        decode_image(path)
    assert caught.value.verdict == "image over the size limit"
    between = tmp_path / "between.png"  # under Pillow's own limit, over ours
    between.write_bytes(png_bomb(10_001))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match="10001x10001 px is over the limit of 100 megapixels"),
    ):
        decode_image(between)


@pytest.mark.slow
def test_f08_memory_of_a_refused_bomb(tmp_path: Path) -> None:
    """The 12.7 GB that the header claims must not even be reserved: address space is capped well below them."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png_bomb(65000))
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from zoominnet.data.images import ImageError, decode_image\n"
        "def peak(): return int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) // 1024\n"
        "before = peak()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "for path in sys.argv[1:]:\n"
        "    try: decode_image(Path(path))\n"
        "    except ImageError as error: print(error.verdict)\n"
        "print(peak() - before)\n"
    )
    jpeg = tmp_path / "bomb.jpg"
    jpeg.write_bytes(jpeg_bomb(tmp_path / "a.jpg"))
    done = subprocess.run([sys.executable, "-c", program, path, jpeg], capture_output=True, text=True, check=False)
    verdict, verdict_too, growth_mib = done.stdout.splitlines()
    assert verdict == verdict_too == "image over the size limit", done.stderr
    assert int(growth_mib) < 50  # importing torch alone takes 300 to 700 MiB, by its build


def test_image_error_survives_a_worker_process(tmp_path: Path) -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("a.jpg: cut off", "image file missing")))
    assert (str(error), error.verdict) == ("a.jpg: cut off", "image file missing")


def test_listing_is_sorted_recursive_and_leaves_out_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "._a.png", "Thumbs.db", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.as_posix() for path in list_images(tmp_path)] == ["a.png", "b.JPG", "sub/c.webp"]


@pytest.mark.parametrize("decode", [False, True])
def test_f23_inspection_keeps_the_order_and_the_root(tmp_path: Path, decode: bool) -> None:
    root = tmp_path / "data"
    root.mkdir()
    inside, outside = save(root / "a.png"), save(tmp_path / "out.png")
    link, loop, inner_link = root / "link.png", root / "loop.png", root / "inner.png"
    link.symlink_to(outside)
    loop.symlink_to(loop)
    inner_link.symlink_to(inside)
    truncated = root / "cut.png"
    truncated.write_bytes(inside.read_bytes()[:5000])
    results = list(inspect_images([inside, link, loop, truncated, inner_link], root, decode=decode))
    kinds = [result.verdict if isinstance(result, ImageError) else result[:2] for result in results]
    outside_verdict = "path leads outside the data folder"
    cut = "unreadable image" if decode else (WIDTH, HEIGHT)
    assert kinds[0] == (WIDTH, HEIGHT) == kinds[4]
    assert kinds[1] == outside_verdict
    assert kinds[2] in (outside_verdict, "image file missing")  # by the Python version
    assert kinds[3] == cut
    linked_root = tmp_path / "linked"
    linked_root.symlink_to(root)
    assert next(iter(inspect_images([linked_root / "a.png"], linked_root, decode=decode)))[:2] == (WIDTH, HEIGHT)


def test_f07_five_hundred_headers_a_second_are_scanned(tmp_path: Path) -> None:
    """As many as RELIABILITY demands of a core, of photographs' size; measured are several thousand."""
    pixels = np.random.default_rng(0).integers(0, 256, (765, 1360, 3), dtype=np.uint8)
    paths = [save(tmp_path / f"{i}.jpg", pixels) for i in range(4)]
    start = time.process_time()
    headers = list(inspect_images(paths * 50, tmp_path, decode=False))
    assert len(headers) / (time.process_time() - start) > 500
    assert {header[:2] for header in headers if not isinstance(header, ImageError)} == {(1360, 765)}


@pytest.mark.shared_data
def test_real_images(tmp_path: Path) -> None:
    folder = SHARED / "data" / "visdrone-mini" / "val" / "images"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    paths = [folder / name for name in list_images(folder)]
    assert len(paths) == 106
    for path in paths[::25]:
        np.testing.assert_array_equal(as_array(decode_image(path)), np.array(Image.open(path).convert("RGB")))
