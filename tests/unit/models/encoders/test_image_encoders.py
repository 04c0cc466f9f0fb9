import threading

import numpy as np
import pytest
import torch
from PIL import Image

from models.artifact import save_artifact
from models.encoders import architecture_module, load_encoder
from models.encoders.images import ImagePreprocessing
from models.errors import ArtifactError, ItemError

ARCHITECTURES = {
    "convnet": {"widths": [4, 8], "blocks": 1, "hidden": 12},
    "vit": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
    "vit_adapted": {
        "network": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
        "source_dim": 12,
        "placement": "symmetric",
        "rank": 3,
        "map_hidden": 4,
    },
}


def make(folder, architecture="convnet", preprocessing=None, dim=10, name="e"):
    preprocessing = preprocessing or {"size": 16, "mode": "L", "fill": 0}
    torch.manual_seed(0)
    network = architecture_module(architecture).build(
        ARCHITECTURES[architecture], dim, ImagePreprocessing(**preprocessing)
    )
    save_artifact(
        folder, network.state_dict(), kind="encoder", name=name, architecture=architecture,
        options=ARCHITECTURES[architecture], modality="image", preprocessing=preprocessing, dim=dim,
    )  # fmt: skip
    return load_encoder(folder)


def pictures(n=5):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, (n, 2))
    modes = ["L", "RGB", "RGBA", "1", "P"]
    noise = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    return [Image.fromarray(pixels).convert(modes[i % 5]) for i, pixels in enumerate(noise)]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_of_any_size_and_colour_become_unit_vectors(tmp_path, architecture, mode):
    encoder = make(tmp_path / "e", architecture, {"size": 16, "mode": mode, "fill": 0})
    vectors = encoder.encode([encoder.preprocess(picture) for picture in pictures()])
    assert vectors.shape == (5, 10)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert encoder.encode([]).shape == (0, 10)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_an_items_vector_does_not_depend_on_its_batch(tmp_path, architecture):
    encoder = make(tmp_path / "e", architecture)
    prepared = [encoder.preprocess(picture) for picture in pictures(20)]
    whole = encoder.encode(prepared)
    alone = np.concatenate([encoder.encode([one]) for one in prepared])
    np.testing.assert_allclose(whole, alone, atol=1e-5)


def test_several_threads_preprocess_and_encode_to_the_same_vectors(tmp_path):
    encoder = make(tmp_path / "e")
    shown = pictures(20)
    expected = encoder.encode([encoder.preprocess(picture) for picture in shown])
    results = [None] * 4

    def work(place):
        results[place] = encoder.encode([encoder.preprocess(picture) for picture in shown])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_preprocessing_keeps_the_aspect_ratio_and_pads_with_the_fill():
    wide = Image.new("L", (40, 20), 200)
    pixels = ImagePreprocessing(size=16, mode="L", fill=7)(wide)
    assert pixels.shape == (1, 16, 16)
    assert (pixels[0, 4:12] == 200).all()
    assert (pixels[0, :4] == 7).all()
    assert (pixels[0, 12:] == 7).all()


def test_a_picture_of_the_right_size_passes_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    prepared = ImagePreprocessing(size=16, mode="RGB")(Image.fromarray(pixels))
    assert np.array_equal(prepared.transpose(1, 2, 0), pixels)


def test_transparent_pixels_take_the_colour_of_the_fill():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (ImagePreprocessing(size=8, mode="L", fill=9)(clear) == 9).all()


@pytest.mark.parametrize("values", [{"size": 2}, {"mode": "CMYK"}, {"fill": 300}])
def test_preprocessing_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match="preprocessing"):
        ImagePreprocessing(**values)


def test_a_text_is_refused_as_an_item(tmp_path):
    with pytest.raises(ItemError, match="embeds images"):
        make(tmp_path / "e").preprocess("In the beginning")


def test_weights_of_another_network_are_refused_at_load(tmp_path):
    save_artifact(
        tmp_path / "e", {"w": torch.zeros(3)}, kind="encoder", name="e", architecture="convnet", options={},
        modality="image", preprocessing={}, dim=4,
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="does not fit its architecture"):
        load_encoder(tmp_path / "e")


def test_an_unknown_architecture_is_named_with_the_known_ones(tmp_path):
    save_artifact(
        tmp_path / "e", {}, kind="encoder", name="e", architecture="resnet9000", options={}, modality="image",
        preprocessing={}, dim=4,
    )  # fmt: skip
    with pytest.raises(ArtifactError, match=r"resnet9000.*convnet"):
        load_encoder(tmp_path / "e")


def test_a_patch_must_divide_the_picture(tmp_path):
    with pytest.raises(ValueError, match="divide"):
        architecture_module("vit").build({"patch": 5}, 8, ImagePreprocessing(size=16))
