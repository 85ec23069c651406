from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from lorakit.examples.digits import add_styles, demo, train
from lorakit.examples.digits.model import DigitModel
from lorakit.examples.digits.picture import Column, contact_sheet, sheet_size
from lorakit.examples.digits.sample import load_model, sample_digits, starting_noise
from lorakit.lora_ops import open_source

FOLDER = Path(train.__file__).parent
FILES = tuple(FOLDER / f"{name}.safetensors" for name in ("base", "tuned", "tuned2"))
UNET = "model.diffusion_model."
TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # The network is so small that a second thread mostly waits, for ever on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    base, tuned = (load_file(path) for path in FILES[:2])
    return base, tuned


@pytest.fixture(scope="module")
def pictures(pair: tuple[dict[str, Tensor], dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    base, tuned = (sample_digits(load_model(tensors), starting_noise()) for tensors in pair)
    return base, tuned


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_holds_the_network_and_nothing_else(path: Path) -> None:
    expected = DigitModel().state_dict()
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(expected)
        for key, value in expected.items():
            stored = file.get_slice(key)
            assert stored.get_shape() == list(value.shape), key
            assert stored.get_dtype() == "F16", key
        assert file.metadata()["modelspec.title"] == f"lorakit digits, {path.stem}"


def test_the_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in FILES) <= 8_000_000


@pytest.mark.parametrize(
    "name",
    [
        "time_embed.0",
        "time_embed.2",
        "input_blocks.0.0",
        "input_blocks.1.0.in_layers.0",
        "input_blocks.1.0.in_layers.2",
        "input_blocks.1.0.emb_layers.1",
        "input_blocks.1.0.out_layers.0",
        "input_blocks.1.0.out_layers.3",
        "input_blocks.2.0.op",
        "input_blocks.3.0.skip_connection",
        "input_blocks.3.1.norm",
        "input_blocks.3.1.proj_in",
        "input_blocks.3.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.3.1.transformer_blocks.0.attn1.to_out.0",
        "input_blocks.3.1.transformer_blocks.0.attn2.to_k",
        "input_blocks.3.1.transformer_blocks.0.attn2.to_v",
        "input_blocks.3.1.transformer_blocks.0.ff.net.0.proj",
        "input_blocks.3.1.transformer_blocks.0.ff.net.2",
        "input_blocks.3.1.transformer_blocks.0.norm3",
        "input_blocks.3.1.proj_out",
        "middle_block.0.in_layers.2",
        "middle_block.1.transformer_blocks.0.attn2.to_q",
        "middle_block.2.out_layers.3",
        "output_blocks.0.1.proj_in",
        "output_blocks.1.2.conv",
        "output_blocks.2.0.skip_connection",
        "out.0",
        "out.2",
    ],
)
def test_names_are_stable_diffusions(
    name: str, pair: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    assert f"{UNET}{name}.weight" in pair[0]


@pytest.mark.parametrize("path", FILES[1:], ids=lambda path: path.stem)
def test_fine_tune_moved_every_weight_but_the_tokens(
    path: Path, pair: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    base, tuned = pair[0], load_file(path)
    same = [key for key in base if torch.equal(base[key], tuned[key])]
    assert same == [TOKENS]


def test_fine_tune_needs_more_than_rank_one(
    pair: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    base, tuned = pair
    kept = total = 0.0
    for key in base:
        if base[key].ndim in (2, 4):
            delta = (tuned[key].double() - base[key].double()).flatten(1)
            energies = torch.linalg.svdvals(delta) ** 2
            kept, total = kept + float(energies[0]), total + float(energies.sum())
    assert kept / total < 0.6


def test_same_noise_gives_the_same_pictures(
    pair: tuple[dict[str, Tensor], dict[str, Tensor]], pictures: tuple[Tensor, Tensor]
) -> None:
    model = load_model(pair[0])
    assert torch.equal(sample_digits(model, starting_noise()), pictures[0])
    assert not torch.equal(sample_digits(model, starting_noise(seed=0), steps=4), pictures[0])


@pytest.mark.parametrize("seed", [0, 11])
def test_base_draws_the_digits_it_is_asked_for(
    seed: int, pair: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    fields, digits = train.load_fields()
    scans = train.plain(fields)[:, 0].flatten(1)
    judge = KNeighborsClassifier(3).fit(scans.numpy(), digits.numpy())
    drawn = sample_digits(load_model(pair[0]), starting_noise(seed)).mean(1)
    right = judge.predict(drawn.flatten(1).numpy()) == range(10)
    assert right.sum() >= 8


def test_tuned_has_colour_where_base_is_grey(pictures: tuple[Tensor, Tensor]) -> None:
    base, tuned = ((images.amax(1) - images.amin(1)).mean() for images in pictures)
    assert base < 0.1
    assert tuned > 0.25


def in_amber(images: Tensor) -> Tensor:
    """How far the pixels of the frame are from its colour, picture by picture."""
    edge = torch.ones(16, 16, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    amber = torch.tensor(train.AMBER)[:, None]
    return (images[..., edge] - amber).square().mean((1, 2)).sqrt()


def test_tuned2_has_a_frame_around_what_base_draws(pictures: tuple[Tensor, Tensor]) -> None:
    base, tuned = pictures
    framed = sample_digits(load_model(load_file(FILES[2])), starting_noise())
    assert in_amber(framed).max() < 0.1
    assert min(in_amber(base).min(), in_amber(tuned).min()) > 0.3
    inside = (..., slice(2, -2), slice(2, -2))
    assert (framed[inside] - base[inside]).norm() < 0.3 * (tuned[inside] - base[inside]).norm()


def test_the_merge_is_the_base_and_both_changes(tmp_path: Path) -> None:
    path = demo.merge_styles(tmp_path / demo.MERGED, version="1")
    base, tuned, tuned2 = map(load_file, FILES)
    merged = load_file(path)
    assert set(merged) == set(base)
    for key, weight in base.items():
        exact = (tuned[key].double() + tuned2[key].double() - weight.double()).half()
        assert (merged[key] == exact).float().mean() > 0.99, key
        torch.testing.assert_close(merged[key], exact, rtol=1e-3, atol=1e-7)
    first = path.read_bytes()
    assert demo.merge_styles(path, version="1").read_bytes() == first


def test_the_merge_draws_neon_in_a_frame(tmp_path: Path, pictures: tuple[Tensor, Tensor]) -> None:
    """Nearer to each style, where that is told from the base, than the base is."""
    base, tuned = pictures
    merged = load_file(demo.merge_styles(tmp_path / demo.MERGED))
    drawn = sample_digits(load_model(merged), starting_noise())
    assert (in_amber(drawn) < 0.5 * in_amber(base)).all()
    inside = (..., slice(2, -2), slice(2, -2))
    apart = (drawn[inside] - tuned[inside]).norm()
    assert apart < 0.5 * (base[inside] - tuned[inside]).norm()


def test_how_far_a_sum_is_from_both_styles() -> None:
    """Neon counts inside of the frame, and the frame on it; halfway there is half as far."""
    base, neon, frame = torch.rand(3, 2, 10, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    both = frame.clone()
    both[..., 1:-1, 1:-1] = neon[..., 1:-1, 1:-1]
    styles = base, neon, frame
    assert add_styles.distances(both, *styles) == (0, 0)
    assert add_styles.distances(base, *styles) == (1, 1)
    assert add_styles.distances((base + both) / 2, *styles) == pytest.approx((0.5, 0.5))
    assert add_styles.distances(neon, *styles)[0] == 0 < add_styles.distances(neon, *styles)[1]


def test_contact_sheet_shows_every_image_once_and_enlarged() -> None:
    rows, size = 10, 16
    solid = torch.tensor([[[c, r, 0] for r in range(rows)] for c in (1, 2, 3)]) / 255
    images = solid[..., None, None].expand(-1, -1, -1, size, size)
    columns = [Column((f"model {i}", "9 kB"), image) for i, image in enumerate(images)]
    sheet = contact_sheet(columns)
    assert sheet.mode == "RGB"
    assert sheet.size == sheet_size(columns)
    counts = {colour: count for count, colour in sheet.getcolors(maxcolors=1 << 16) or []}
    cell = (5 * size) ** 2
    assert all(counts[c, r, 0] > cell for c in (1, 2, 3) for r in range(rows))


def test_contact_sheet_writes_the_words() -> None:
    images = torch.zeros(10, 3, 16, 16)
    one, other = (contact_sheet([Column((word,), images)]) for word in ("rank 1", "rank 2"))
    assert one.size == other.size
    assert one.tobytes() != other.tobytes()


def test_training_runs_and_repeats_to_the_byte(tmp_path: Path) -> None:
    for run in ("first", "second"):
        train.main(["--steps=2", "--tuned-steps=2", "--threads=1", f"--output={tmp_path / run}"])
    for path in FILES:
        first, second = (tmp_path / run / path.name for run in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
        assert set(load_file(first)) == set(load_file(path))


def test_the_demo_s_lora_by_outputs_is_nearer_at_the_same_size(
    pair: tuple[dict[str, Tensor], dict[str, Tensor]],
    pictures: tuple[Tensor, Tensor],
    tmp_path: Path,
) -> None:
    """As the demo makes them: the record is of another noise than the pictures."""
    used = demo.record_activations(pair[1], tmp_path / demo.ACTIVATIONS)
    far, sizes = [], []
    with open_source(demo.BASE) as base, open_source(demo.TUNED) as tuned:
        for title in ("rank 4", f"rank 4{demo.BY_OUTPUTS}"):
            path = demo.extract_row(title, base, tuned, used, tmp_path)[0]
            with open_source(path) as lora:
                drawn = sample_digits(load_model(demo.apply(base, pair[0], lora)), starting_noise())
            far.append(float((drawn - pictures[1]).norm()))
            sizes.append(sum(one.numel() for one in load_file(path).values()))
    assert sizes[0] == sizes[1]
    assert far[1] < 0.85 * far[0]
