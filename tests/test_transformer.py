"""The transformer against attention written out for one row at a time, in double precision."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import refold
from refold.backbones import Transformer, backbones
from refold.backbones.base import Geometry
from refold.backbones.transformer import Block
from refold.data.corruptions import Mask
from refold.errors import InputError
from refold.likelihoods import Gaussian
from refold.ops.tokens import cut, places
from refold.parts import PartSpec
from refold.types import Batch

IMAGE = Geometry((2, 9, 6), (1,) * 108, 108, True)
SERIES = Geometry((7, 3), (1,) * 21, 42, True)  # two numbers for each entry
TABLE = Geometry((5,), (1,) * 5, 10, True)
TEXT = Geometry((6,), (11,) * 6, 66, True)
CLASSES = Geometry((3,), (2, 4, 3), 9, True)
RANKS = Geometry((3,), (2, 4, 3), 3, True)  # ordered levels: one number for each
KINDS = {
    "image": IMAGE,
    "series": SERIES,
    "table": TABLE,
    "text": TEXT,
    "classes": CLASSES,
    "ranks": RANKS,
}
ROWS = 9


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(geometry, **options):
    torch.manual_seed(3)
    chosen = {"patch": 4, "width": 8, "heads": 2, "layers": 2, **options}
    spine = Transformer(geometry, **chosen).double()
    for p in spine.parameters():  # nothing is zero or one, so that nothing can be left out
        torch.nn.init.normal_(p, std=0.5)
    return spine


def example(kind, rows=ROWS):
    """Rows of one kind, of which entries are missing: none of the first, all of the second."""
    geometry, g = KINDS[kind], seeded(1)
    if kind in ("text", "classes", "ranks"):
        x = torch.stack([torch.randint(n, (rows,), generator=g) for n in geometry.sizes], 1)
        if kind == "ranks":
            x = x.double() / (torch.tensor(geometry.sizes) - 1)
    else:
        x = torch.randn(rows, *geometry.shape, generator=g, dtype=torch.float64)
    share = torch.rand(rows, 1, generator=g)
    seen = torch.rand(rows, len(geometry.sizes), generator=g) < share
    if kind == "image":  # whole squares too, or hardly one would ever be hidden
        square = cut(geometry.shape, 4)
        gone = torch.rand(rows, len(square), generator=g) < 0.5
        seen &= ~gone.repeat_interleave(square.shape[1], 1)[:, places(square, 108)]
    seen[0], seen[1] = True, False
    return x, seen


# ------------------------------------------------------------------ a plain reference


def grouped(geometry, patch):
    """Entries of each token, by loops; None where the last tokens are filled up."""
    shape = geometry.shape
    if len(shape) == 1:
        return [[e] for e in range(shape[0])]
    entry = np.arange(math.prod(shape)).reshape(shape)
    tokens = []
    if len(shape) == 2:
        for t in range(0, shape[0], patch):
            steps = range(t, t + patch)
            tokens.append([
                entry[i, c] if i < shape[0] else None for c in range(shape[1]) for i in steps
            ])  # fmt: skip
        return tokens
    channels, height, width = shape
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            tokens.append([
                entry[c, i, j] if i < height and j < width else None
                for c in range(channels)
                for i in range(top, top + patch)
                for j in range(left, left + patch)
            ])  # fmt: skip
    return tokens


def embedded(spine, x, seen, i, entries):
    """One token of one row ``x`` ``[E]``, without its position."""
    geometry = spine.geometry
    if max(geometry.sizes) > 1:
        (e,) = entries
        level = x[e] if x.dtype == torch.int64 else round(float(x[e]) * (geometry.sizes[e] - 1))
        before = 0 if len(set(geometry.sizes)) == 1 else sum(geometry.sizes[:e])
        return spine.table[before + int(level)]
    if len(geometry.shape) == 1:
        return x[i] * spine.value[i]
    there = [e is not None and bool(seen[e]) for e in entries]
    values = torch.stack(
        [x[e] if t else x.new_zeros(()) for e, t in zip(entries, there, strict=True)]
    )
    return spine.embed(torch.cat([values, torch.tensor(there, dtype=values.dtype)]))


def attended(block, tokens):
    """One block for one row ``[n, C]``, head by head."""
    width = tokens.shape[1]
    q, k, v = block.qkv(block.before(tokens)).split(width, 1)
    found = []
    for h in range(block.heads):
        at = slice(h * width // block.heads, (h + 1) * width // block.heads)
        weights = torch.softmax(q[:, at] @ k[:, at].T / (width // block.heads) ** 0.5, 1)
        found.append(weights @ v[:, at])
    tokens = tokens + block.out(torch.cat(found, 1))
    return tokens + block.shrink(F.gelu(block.grow(block.between(tokens))))


def plain(spine, x, seen):
    """Hidden state of one row from its visible tokens alone: nothing is filled up or masked."""
    x = x.flatten()
    groups = grouped(spine.geometry, spine.patch)
    visible = [i for i, own in enumerate(groups) if any(e is not None and seen[e] for e in own)]
    tokens = [spine.place[i] + embedded(spine, x, seen, i, groups[i]) for i in visible]
    if spine.pool == "token":
        tokens = [spine.token[0], *tokens]
    if not tokens:
        return torch.zeros(spine.encoded, dtype=torch.float64)
    tokens = torch.stack(tokens)
    for block in spine.encoder:
        tokens = attended(block, tokens)
    tokens = spine.norm(tokens)
    if spine.pool == "places":
        h = torch.zeros(len(groups), spine.encoded // len(groups), dtype=torch.float64)
        h[visible] = spine.leave(tokens) * len(groups) / len(visible)
        return h.flatten()
    return tokens[0] if spine.pool == "token" else tokens.mean(0)


def plain_decoded(spine, h):
    """Parameters of one row, entry by entry, where there is one number per entry and level."""
    geometry, width = spine.geometry, spine.width
    groups = grouped(geometry, spine.patch)
    given = h.view(len(groups), -1) if spine.spread else h.expand(len(groups), width)
    tokens = spine.enter(given) + spine.query
    for block in spine.decoder:
        tokens = attended(block, tokens)
    tokens = spine.last(tokens)
    params = spine.bias.clone()
    sizes, entries = geometry.sizes, len(geometry.sizes)
    for i, token in enumerate(tokens):
        if max(sizes) > 1 and geometry.params == sum(sizes):
            at = slice(sum(sizes[:i]), sum(sizes[: i + 1]))
            rows = slice(0, sizes[0]) if len(set(sizes)) == 1 else at
            params[at] += spine.head[rows] @ token
            continue
        each = geometry.params // entries
        own = len(geometry.shape) == 1 and not (max(sizes) > 1 and len(set(sizes)) == 1)
        for k in range(each):
            for j, e in enumerate(groups[i]):
                row = i * each + k if own else k * len(groups[i]) + j
                if e is not None:
                    params[k * entries + e] += spine.head[row] @ token
    return params


# ------------------------------------------------------------------ the encoder


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pool", ["places", "mean", "token"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_what_its_visible_tokens_give_alone(kind, pool, training):
    spine = built(KINDS[kind], pool=pool).train(training)
    x, seen = example(kind)
    h, _ = spine.encode(x, seen)
    torch.testing.assert_close(
        h, torch.stack([plain(spine, *row) for row in zip(x, seen, strict=True)])
    )
    h, _ = spine.encode(x, None)
    every = torch.ones_like(seen)
    torch.testing.assert_close(
        h, torch.stack([plain(spine, *row) for row in zip(x, every, strict=True)])
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_visible_has_no_say_and_gets_no_gradient(kind, training):
    spine = built(KINDS[kind]).train(training)
    x, seen = example(kind)
    other = x.roll(1, 0) if KINDS[kind].sizes[0] > 1 else x + 3
    moved = torch.where(seen.view_as(x), x, other)
    assert not torch.equal(moved, x)
    assert torch.equal(spine.encode(x, seen)[0], spine.encode(moved, seen)[0])
    if x.is_floating_point() and kind != "ranks":
        x.requires_grad_()
        spine.encode(x, seen)[0].square().sum().backward()
        assert torch.equal(x.grad.flatten(1) != 0, seen)


def test_a_row_of_which_nothing_is_there():
    x, seen = example("table")
    assert not seen[1].any()
    for training in (True, False):
        for pool in ("places", "mean"):
            h = built(TABLE, pool=pool).train(training).encode(x, seen)[0]
            assert h[0].all()
            assert not h[1].any()
        token = built(TABLE, pool="token").train(training)
        nothing = torch.zeros_like(seen)
        all_gone = token.encode(x, nothing)[0]
        torch.testing.assert_close(all_gone[0], plain(token, x[0], nothing[0]))
        torch.testing.assert_close(token.encode(x, seen)[0][1], all_gone[0])
        assert not built(TABLE).train(training).encode(x, nothing)[0].any()


def test_without_a_spread_a_place_has_the_whole_width():
    spine = built(TABLE, spread=0)
    x, seen = example("table")
    h, _ = spine.encode(x, seen)
    assert h.shape == (ROWS, spine.encoded) == (ROWS, 5 * 8)
    expected = torch.stack([plain(spine, *row) for row in zip(x, seen, strict=True)])
    torch.testing.assert_close(h, expected)


def met(spine, x, seen):
    """Tokens that the first block is given, and the mask."""
    kept = []
    hook = spine.encoder[0].register_forward_pre_hook(lambda _, given: kept.append(given))
    spine.encode(x, seen)
    hook.remove()
    return kept[0]


def test_training_gathers_what_is_visible_and_masks_only_where_counts_differ():
    x = torch.randn(ROWS, 1, 12, 12, dtype=torch.float64)
    spine = built(Geometry((1, 12, 12), (1,) * 144, 144, True), patch=3)
    seen = Mask(fraction=0.75, patch=3)(Batch({"x": x}, {"x": None}), seeded()).observed["x"]
    tokens, there = met(spine, x, seen)
    assert (tokens.shape, there) == ((ROWS, 4, 8), None)
    fewer = seen.clone()
    fewer[2] = False
    tokens, there = met(spine, x, fewer)
    assert tokens.shape == (ROWS, 4, 8)
    assert there.sum(1).tolist() == [4, 4, 1, 4, 4, 4, 4, 4, 4]  # one that is dropped again
    assert met(spine, x, None)[0].shape == (ROWS, 16, 8)
    assert met(spine, x, torch.ones_like(seen))[1] is None
    assert met(spine.eval(), x, seen)[0].shape == (ROWS, 16, 8)


def test_the_encoders_work_falls_with_what_is_hidden():
    geometry = Geometry((1, 28, 28), (1,) * 784, 784, True)
    spine, x = Transformer(geometry), torch.rand(32, 1, 28, 28)
    seen = Mask(fraction=0.75)(Batch({"x": x}, {"x": None}), seeded()).observed["x"]

    def work(visible):
        with FlopCounterMode(display=False) as counter:
            spine.encode(x, visible)[0].sum().backward()
        return counter.get_total_flops()

    assert work(seen) / work(None) < 12.5 / 49


@pytest.mark.parametrize("kind", ["image", "table", "classes"])
def test_in_evaluation_a_row_is_the_same_to_the_last_bit_whatever_comes_along(kind):
    spine = built(KINDS[kind]).float().eval()
    x, seen = example(kind, 64)
    x = x.float() if x.is_floating_point() else x
    h, _ = spine.encode(x, seen)
    lone = torch.zeros(64, dtype=torch.long) + 5
    assert torch.equal(spine.encode(x[lone], seen[lone])[0][0], h[5])
    assert torch.equal(spine.encode(x, None)[0][0], h[0])  # of row 0 everything is there


def test_a_class_never_seen_is_one_that_is_missing():
    spine = built(Geometry((6,), (11,) * 6, 66, False))
    x, _ = example("text")
    seen = torch.ones_like(x, dtype=torch.bool)
    seen[3, 2] = seen[4, 0] = False
    told = x.masked_fill(~seen, -1)
    told[4, 0] = -2
    for training in (True, False):
        spine.train(training)
        expected = torch.stack([plain(spine, *row) for row in zip(x, seen, strict=True)])
        torch.testing.assert_close(spine.encode(told, None)[0], expected)


# ------------------------------------------------------------------ the decoder


@pytest.mark.parametrize("spread", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_stand_where_the_likelihood_reads_them(kind, spread):
    spine = built(KINDS[kind], spread=spread, decoder_layers=1)
    h = torch.randn(4, spine.decoded, dtype=torch.float64, generator=seeded())
    expected = torch.stack([plain_decoded(spine, row) for row in h])
    torch.testing.assert_close(spine.decode(h, ()), expected)


def test_two_numbers_of_an_entry_come_from_its_own_token():
    """What the fourth token says moves mean and scale of its steps alone, not of others."""
    spine = built(SERIES, patch=2, decoder_layers=0, spread=3)
    head = Gaussian(SERIES.sizes, SERIES.shape, variance="predicted")
    h = torch.zeros(2, spine.decoded, dtype=torch.float64)
    h[1, 9:12] = 1.0
    one, two = (
        torch.stack(torch.broadcast_tensors(*head.split(p[None]))) for p in spine.decode(h, ())
    )
    moved = (one != two)[:, 0].view(2, 7, 3).all(2)
    assert moved.tolist() == [[False] * 6 + [True]] * 2


def test_training_starts_at_the_constant():
    for kind in ("image", "series", "text", "classes"):
        spine, params = built(KINDS[kind]), torch.randn(KINDS[kind].params, dtype=torch.float64)
        assert spine.start_at(params)
        torch.nn.init.zeros_(spine.head)
        out = spine.decode(torch.randn(2, spine.decoded, dtype=torch.float64), ())
        torch.testing.assert_close(out, params.expand(2, -1))


# ------------------------------------------------------------------ both


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", ["places", "mean", "token"])
def test_every_parameter_learns(kind, pool):
    spine = built(KINDS[kind], pool=pool, dropout=0.2)
    x, seen = example(kind, 40)
    h, _ = spine.encode(x, seen)
    params = spine.decode(torch.randn(4, spine.decoded, dtype=torch.float64), ())
    (h.square().sum() + params.square().sum()).backward()
    for name, p in spine.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_gradients_and_their_gradients():
    torch.manual_seed(0)
    block = Block(4, heads=2).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    there = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda t: block(t, there), x)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda t: block(t, there), x)


def test_options_survive_json():
    spine = Transformer(TABLE, patch=2, width=6, heads=3, layers=1, spread=0, pool="token")
    options = json.loads(json.dumps(dict(backbones.spec(spine).options)))
    assert str(backbones.build(PartSpec("transformer", options), TABLE)) == str(spine)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 10}, "width of 10 does not part into 4 heads"),
        ({"patch": 0}, "patch is 0; it must be 1 or more"),
        ({"layers": 0}, "layers is 0"),
        ({"decoder_layers": -1}, "decoder_layers is -1; it must be 0 or more"),
        ({"spread": -1}, "spread is -1"),
        ({"pool": "men"}, "did you mean 'mean'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(InputError, match=said):
        Transformer(IMAGE, **options)


def test_a_likelihood_with_unequal_shares_is_refused():
    with pytest.raises(InputError, match="takes 7 numbers for 5 entries"):
        Transformer(Geometry((5,), (1,) * 5, 7, False))


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 9, 6), (2, 3, 3), (8, 2), (7, 3), (5,)])
@pytest.mark.parametrize("patch", [1, 3, 4])
def test_tokens_hold_every_entry_once(shape, patch):
    tokens = cut(shape, patch)
    entries = math.prod(shape)
    counts = torch.bincount(tokens.flatten(), minlength=entries + 1)
    assert (counts[:entries] == 1).all()
    assert torch.equal(tokens.flatten()[places(tokens, entries)], torch.arange(entries))


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((1, 28, 28), 4), ((3, 8, 8), 2), ((1, 3, 30), 4), ((200, 2), 16), ((24, 1), 2), ((5,), 9)],
)
def test_a_patch_that_is_not_given_follows_from_the_size(shape, patch):
    assert torch.equal(cut(shape), cut(shape, patch))
    assert torch.equal(
        Transformer(Geometry(shape, (1,) * math.prod(shape), 0, False)).tokens, cut(shape)
    )
    x = torch.zeros(3, *shape)
    one, two = (
        Mask(patch=p)(Batch({"x": x}, {"x": None}), seeded()).observed["x"] for p in (None, patch)
    )
    assert torch.equal(one, two)


# ------------------------------------------------------------------ models


def digits():
    from sklearn.datasets import load_digits

    return np.float32(load_digits().images[:600]) / np.float32(16)


def penguins(rows=240):
    """Three kinds of birds that differ in sizes; a tenth of the cells is missing."""
    r = np.random.default_rng(0)
    kind = r.integers(0, 3, rows)
    frame = pd.DataFrame(
        {
            "bill": 40 + 5 * kind + r.normal(size=rows),
            "depth": 20 - 2 * kind + 0.5 * r.normal(size=rows),
            "mass": 3500 + 700 * kind + 100 * r.normal(size=rows),
            "species": np.array(["Adelie", "Chinstrap", "Gentoo"])[kind],
            "sex": r.choice(["f", "m"], rows),
        }
    )
    return frame.mask(r.random(frame.shape) < 0.1)


@pytest.mark.parametrize("recipe", ["transformer", "masked"])
def test_digits_are_learnt(recipe, tmp_path):
    X = digits()
    fields = {"image": "image(backbone='transformer(width=32, layers=1)')"}
    options = {"recipe": recipe, "fields": fields, "epochs": 25, "batch_size": 32, "lr": 4e-3}
    ae = refold.Autoencoder(16, **options).fit(X)
    constant = float(np.square(X - X.mean(0)).sum((1, 2)).mean())
    assert ae.squared_error(X) < (0.7 if recipe == "masked" else 0.4) * constant
    assert ae.transform(X[:7]).shape == (7, 16)
    ae.save(tmp_path / "model")
    assert np.array_equal(refold.load(tmp_path / "model").transform(X), ae.transform(X))


def test_a_table_with_gaps_is_filled_from_few_cells():
    rows = penguins()
    ae = refold.Autoencoder(4, recipe="masked", epochs=25, lr=3e-3).fit(rows)
    known = rows.dropna()
    asked = known.copy()
    asked["species"] = None
    answer = ae.predict(asked.drop(columns="species"), "species")
    assert (np.asarray(answer).ravel() == known["species"]).mean() > 0.9
