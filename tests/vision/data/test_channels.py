"""Images with more or fewer than three channels, from file to classifier: satellite and microscope images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from contrastive_core.errors import UserError
from contrastive_core.training import InferenceOptions, RunOptions
from ssl_vision.augment import CropFlip, EvalTransform, SimCLRAugment
from ssl_vision.checks import examine
from ssl_vision.checks.facts import look_at
from ssl_vision.commands.embed import embed
from ssl_vision.commands.evaluate import evaluate
from ssl_vision.commands.export import export
from ssl_vision.commands.predict import predict
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.commands.report import report
from ssl_vision.data import decode as decoding
from ssl_vision.data import measure_statistics, open_images
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.data.decode import read_image, read_size
from ssl_vision.models import EncoderOptions, build_encoder
from ssl_vision.models.model_folder import load_encoder
from ssl_vision.training.finetuning import finetune
from ssl_vision.training.options import FinetuningOptions, OptimizerOptions, PretrainingOptions

CPU = InferenceOptions(device="cpu")

QUIET = RunOptions(threads=1, log_every=1, device="cpu", progress=False)


def bands(seed: int, *, channels: int = 13, size: int = 16, largest: int = 4000) -> np.ndarray:
    """[channels, H, W] of 16 bits, brighter in later channels."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, largest, (channels, size, size)).astype(np.uint16) // np.arange(channels, 0, -1)[:, None, None]
    )


@pytest.mark.parametrize("planar", ["contig", "separate", "pages"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_every_channel_of_a_tiff_is_read_as_it_is_stored(tmp_path: Path, planar: str, compression: str | None) -> None:
    values = bands(0).astype(np.uint16)
    path = tmp_path / "scene.tif"
    if planar == "contig":
        pixels = values.transpose(1, 2, 0)
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig", compression=compression)
    elif planar == "separate":
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate", compression=compression)
    else:
        tifffile.imwrite(path, values, photometric="minisblack", compression=compression)
    image = read_image(path, channels=13)
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image, values / np.float32(65535), rtol=1e-6)
    np.testing.assert_allclose(
        read_image(path, ReadOptions(bits=12), channels=13), np.minimum(values / np.float32(4095), 1), rtol=1e-6
    )
    with pytest.raises(
        UserError, match=r"scene\.tif: found a TIFF with shape .*13.*, expected 4 channels \(--image-channels\)"
    ):
        read_image(path, channels=4)
    if planar != "pages":  # of pages, the first is an image of its own
        with pytest.raises(UserError, match=r"13 channels of 16 bits"):
            read_image(path)


def test_other_files_by_the_number_of_their_channels(tmp_path: Path) -> None:
    gray = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_allclose(read_image(tmp_path / "gray.png", channels=1)[0], gray / np.float32(65535), rtol=1e-6)
    rgba = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_allclose(read_image(tmp_path / "rgba.png", channels=4), rgba.transpose(2, 0, 1) / 255, rtol=1e-6)
    with pytest.raises(UserError, match=r"rgba\.png: found 4 channels, expected 5"):
        read_image(tmp_path / "rgba.png", channels=5)
    tifffile.imwrite(tmp_path / "signed.tif", np.array([[-9999, 0, 32767]], np.int16))
    assert read_image(tmp_path / "signed.tif", channels=1).tolist() == [[[0, 0, 1]]]
    tifffile.imwrite(tmp_path / "float.tif", np.ones((2, 2), np.float32))
    with pytest.raises(UserError, match="found float32 pixels, whose range is unknown"):
        read_image(tmp_path / "float.tif", channels=1)


@pytest.mark.parametrize("name", ["inverted", "inverted16", "palette", "colour", "turned", "bits4"])
def test_a_tiff_of_one_channel_looks_as_in_rgb(name: str, tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    path = tmp_path / "x.tif"
    colours = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = gray
    if name == "inverted":
        tifffile.imwrite(path, 255 - gray, photometric="miniswhite")
    elif name == "inverted16":
        tifffile.imwrite(path, 65535 - gray.astype(np.uint16) * 257, photometric="miniswhite")
    elif name == "palette":
        image = Image.fromarray(colours).quantize(16)
        image.save(path)
        expected = np.asarray(image.convert("RGB").convert("L"))
    elif name == "colour":
        Image.fromarray(colours).save(path)
        expected = np.asarray(Image.fromarray(colours).convert("L"))
    elif name == "turned":
        image = Image.fromarray(gray)
        exif = image.getexif()
        exif[274] = 6  # the top of the image is on the right
        image.save(path, exif=exif)
        expected = np.rot90(gray, -1)
    else:
        tifffile.imwrite(path, gray > 127, photometric="minisblack")
        expected = 255 * (gray > 127)
    np.testing.assert_allclose(read_image(path, channels=1)[0], expected / np.float32(255), atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_the_orientation_of_a_tiff_is_applied_for_any_number_of_channels(
    orientation: int, channels: int, tmp_path: Path
) -> None:
    values = bands(0, channels=channels, largest=60000).astype(np.uint16).transpose(1, 2, 0)[:, :9]
    tifffile.imwrite(
        tmp_path / "x.tif", values, photometric="rgb" if channels == 3 else "minisblack",
        planarconfig=None if channels == 1 else "contig",
        extratags=[(274, "H", 1, orientation, False)],
    )  # fmt: skip
    upright = {
        1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 5: values.transpose(1, 0, 2),
        6: np.rot90(values, -1), 7: np.rot90(values, 2).transpose(1, 0, 2), 8: np.rot90(values),
    }[orientation].transpose(2, 0, 1)  # fmt: skip
    for options in (ReadOptions(), ReadOptions(bits=14)):
        image = read_image(tmp_path / "x.tif", options, channels=channels)
        largest = (1 << (options.bits or 16)) - 1
        if channels == 3:
            np.testing.assert_array_equal(image, (np.minimum(upright / largest, 1) * 255.999).astype(np.uint8))
        else:
            np.testing.assert_allclose(image, np.minimum(upright / largest, 1), rtol=1e-6)
    assert read_size(tmp_path / "x.tif") == upright.shape[1:]


def test_missing_pixels_are_zero(tmp_path: Path) -> None:
    for dtype, missing in (("uint16", 65535), ("uint16", 0), ("int16", -9999), ("int16", 32767), ("uint8", 255)):
        values = bands(1, channels=5, largest=200).astype(dtype)
        values[:, :3] = missing
        tifffile.imwrite(
            tmp_path / "x.tif", values, photometric="minisblack", planarconfig="separate",
            extratags=[(42113, "s", 0, str(missing), False)],
        )  # fmt: skip
        image = read_image(tmp_path / "x.tif", channels=5)
        assert (image[:, :3] == 0).all()
        assert (image[:, 3:] * (255 if dtype == "uint8" else 65535)).max() > 100


def test_bits_apply_to_signed_pixels(tmp_path: Path) -> None:
    values = bands(1, channels=5).astype(np.int16)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack", planarconfig="separate")
    image = read_image(tmp_path / "x.tif", ReadOptions(bits=12), channels=5)
    np.testing.assert_allclose(image, values / np.float32(4095), rtol=1e-6)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_three_channels_that_are_not_called_red_green_and_blue(
    dtype: str, planar: str, bigtiff: bool, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, 5, 7)).astype(dtype)
    pixels = values if planar == "separate" else values.transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", planarconfig=planar, bigtiff=bigtiff)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), values >> (0 if dtype == "uint8" else 8))
    assert read_size(tmp_path / "x.tif") == (5, 7)
    with pytest.raises(UserError, match=r"found a TIFF with shape .*, expected 1 channel "):
        read_image(tmp_path / "x.tif", channels=1)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_inverted_pixels_of_any_byte_order(byteorder: str, tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 65536, (5, 7)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", 65535 - gray, photometric="miniswhite", byteorder=byteorder)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif")[0], gray >> 8)
    np.testing.assert_allclose(read_image(tmp_path / "x.tif", channels=1)[0], gray / np.float32(65535), rtol=1e-6)


@pytest.mark.parametrize("program", ["imagej", "ome"])
def test_pages_that_are_channels_become_red_green_and_blue(program: str, tmp_path: Path) -> None:
    values = bands(0, channels=3, largest=60000).astype(np.uint16)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": "CYX"}, **{program: True})
    np.testing.assert_array_equal(read_image(path), values >> 8)
    (fact,) = [look_at(open_images(tmp_path), 0, split="train")]
    assert (fact.mode, fact.frames, fact.is_stack) == ("3 channels", 1, False)
    data = path.read_bytes()
    for length in range(400, len(data) - 10, 101):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"x\.tif"):
            read_image(path)


def test_a_stack_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoding._warned.clear()
    values = bands(0, channels=5, largest=60000).astype(np.uint16)
    for name, pages, options in (
        ("preview", values[:1], {}),
        ("plain", values, {}),
        ("z", values[:3], {"metadata": {"axes": "ZYX"}, "ome": True}),
    ):
        decoding._warned.clear()
        with tifffile.TiffWriter(tmp_path / f"{name}.tif", ome=options.get("ome")) as file:
            file.write(pages, photometric="minisblack", metadata=options.get("metadata"))
            if name == "preview":
                file.write(values[0, ::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.tif")[0], values[0] >> 8)
        assert ("several gray pages, of which only the first" in capsys.readouterr().err) == (name != "preview")
    found = [finding for finding in examine(tmp_path).findings if finding.kind == "stack"]
    assert [finding.title.partition(":")[0] for finding in found] == ["2 files are a stack of gray pages"]


def test_channels_in_other_files_are_not_taken_for_zeros(tmp_path: Path) -> None:
    """An OME-TIFF whose channels are files of their own."""
    channel = "".join(
        f'<TiffData IFD="0" FirstC="{c}" PlaneCount="1"><UUID FileName="{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>'
        for c in range(2)
    )
    values = bands(0, channels=2).astype(np.uint16)
    for c in range(2):
        about = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{c}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="16" SizeY="16" SizeC="2" SizeZ="1" '
            f'SizeT="1">{channel}</Pixels></Image></OME>'
        )
        tifffile.imwrite(
            tmp_path / f"{c}.ome.tif", values[c], description=about, metadata=None, photometric="minisblack"
        )
        np.testing.assert_allclose(
            read_image(tmp_path / f"{c}.ome.tif", channels=1)[0], values[c] / np.float32(65535), rtol=1e-6
        )
        with pytest.raises(UserError, match="expected 2 channels"):
            read_image(tmp_path / f"{c}.ome.tif", channels=2)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_pixels_are_white_in_one_channel_as_in_rgb(mode: str, tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    rgba[:3, :, 3] = 0
    image = Image.fromarray(rgba)
    if mode == "P":
        image.quantize(8).save(tmp_path / "x.png")
    else:
        image.convert(mode).save(tmp_path / "x.png")
    gray = Image.fromarray(read_image(tmp_path / "x.png").permute(1, 2, 0).numpy()).convert("L")
    np.testing.assert_allclose(read_image(tmp_path / "x.png", channels=1)[0], np.asarray(gray) / 255, atol=1.01 / 255)


@pytest.mark.parametrize("layout", ["separate", "contig", "pages", "bigtiff"])
def test_no_part_of_a_file_of_many_channels_passes_for_the_whole(layout: str, tmp_path: Path) -> None:
    values = bands(0, channels=5, largest=60000).astype(np.uint16)
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path, values.transpose(1, 2, 0) if layout == "contig" else values, photometric="minisblack",
        planarconfig=None if layout == "pages" else "contig" if layout == "contig" else "separate",
        bigtiff=layout == "bigtiff", compression="zlib",
    )  # fmt: skip
    data = path.read_bytes()
    assert read_image(path, channels=5).shape == (5, 16, 16)
    for length in range(0, len(data) - 1, 29):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"x\.tif"):
            read_image(path, channels=5)


def test_stacks_are_no_single_channel(tmp_path: Path) -> None:
    stack = np.zeros((4, 5, 6), np.uint8)
    tifffile.imwrite(tmp_path / "pages.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "imagej.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    for name in ("pages.tif", "imagej.tif"):
        with pytest.raises(UserError, match=r"shape 4 x 5 x 6 .axes .YX., expected 1 channel "):
            read_image(tmp_path / name, channels=1)


@pytest.mark.parametrize("size", [8, 160])  # in blocks, and one by one
@pytest.mark.parametrize("ops", ["simclr", "torchvision"])
def test_channels_are_augmented_alike_and_independently_of_their_number(size: int, ops: str) -> None:
    """Crop, flip, brightness and blur of a channel are independent of the others; contrast only in SimCLR's."""
    images = torch.rand(6, 5, 40, 40, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(6)
    augment = SimCLRAugment(size, ops=ops, jitter=0.8 if ops == "simclr" else 0.0)
    views = augment(images, seed=1, ids=ids)
    assert views.shape == (6, 5, size, size)
    torch.testing.assert_close(views[:, 2:3], augment(images[:, 2:3], seed=1, ids=ids))
    crop = CropFlip(size, ops=ops)
    torch.testing.assert_close(crop(list(images), seed=1, ids=ids), crop(images, seed=1, ids=ids))
    assert EvalTransform(size, ops=ops)(images[:, :1]).shape == (6, 1, size, size)


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18", "torchvision:vit_b_16"])
def test_first_convolutions_fit(name: str) -> None:
    encoder = build_encoder(
        EncoderOptions(name=name, width_multiplier=0.125, image_channels=5), image_size=224 if "vit" in name else 32
    )
    assert encoder(torch.rand(2, 5, *[224 if "vit" in name else 32] * 2)).shape == (2, encoder.feature_dim)


def test_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    values = np.stack([bands(i) for i in range(4)]).astype(np.uint16)
    values[:, 3] = 7
    for i, image in enumerate(values):
        tifffile.imwrite(tmp_path / f"{i}.tif", image, photometric="minisblack")
    mean, std = measure_statistics(open_images(tmp_path, channels=13))
    pixels = values / 65535
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(np.delete(std, 3), np.delete(pixels.std(axis=(0, 2, 3)), 3), rtol=1e-4)
    assert std[3] == 1


def test_from_files_of_13_channels_to_a_classifier(tmp_path: Path) -> None:
    """Two classes differ in a single channel, which no RGB image would show."""
    data = tmp_path / "scenes"
    for split, count in (("train", 24), ("test", 8)):
        for label, name in enumerate(("crop", "forest")):
            (data / split / name).mkdir(parents=True)
            for i in range(count):
                scene = bands(hash((split, label, i)) % 2**31).astype(np.uint16)
                scene[9] += np.uint16(3000 * label)
                tifffile.imwrite(
                    data / split / name / f"{i}.tif", scene, photometric="minisblack", planarconfig="separate"
                )
    assert list(examine(data, channels=13).findings) == []
    assert [finding.kind for finding in examine(data).errors] == ["unreadable"]
    encoder = EncoderOptions(width_multiplier=0.125, image_channels=13)
    model = pretrain(
        str(data),
        tmp_path / "pre",
        training=PretrainingOptions(epochs=2, batch_size=16, image_size=16),
        encoder=encoder,
        optimizer=OptimizerOptions(name="sgd", lr=0.1),
        run=QUIET,
    )
    assert len(load_encoder(str(model)).encoder.mean) == 13
    finetune(
        str(model), str(data), tmp_path / "tuned", training=FinetuningOptions(epochs=20, batch_size=16),
        optimizer=OptimizerOptions(name="sgd", lr=0.5, warmup_epochs=0, weight_decay=0), run=QUIET,
    )  # fmt: skip
    assert evaluate(str(tmp_path / "tuned"), str(data), inference=CPU).score.top1 >= 90
    assert predict(str(tmp_path / "tuned"), str(data / "test"), tmp_path / "out.csv", inference=CPU).unreadable == 0
    embed(str(model), str(data), tmp_path / "features.npz", inference=CPU)
    assert report(tmp_path / "pre", device="cpu").stat().st_size > 10_000
    export(str(tmp_path / "tuned"), tmp_path / "model.pt2")
    with pytest.raises(UserError, match=r"13 channels"):
        pretrain(
            str(data), tmp_path / "rgb", training=PretrainingOptions(epochs=1, batch_size=16, image_size=16), run=QUIET
        )
