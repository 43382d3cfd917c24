# ruff: noqa: D102
"""Autoencoders of every family as one would write them by hand: no fields, masks, logs or guards.

``family.py`` times them beside refold. A network's forward pass is its loss on a batch, a mean over
the rows; parameters come in the order of refold's, so that weights can be handed over.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refold.model import Model

KNOWN = 100  # rows at the end of a batch that have a label


def stack(*widths: int) -> nn.Sequential:
    """Linear layers with rectifiers between."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class Bare(nn.Module):
    """A network whose forward pass is its loss; parameters in the order of refold's."""

    def __init__(self, model: Model) -> None:
        super().__init__()

    def optimizers(self, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
        """Fused AdamW, as refold has it."""
        return [torch.optim.AdamW(self.parameters(), fused=True, **options)]


class Dense(Bare):
    """Plain layers there and back, and the linear maps beside them where refold has them."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        body: Any = model.fusion
        self.size: int = model.latent.size
        wide, out = sum(body.inputs.values()), sum(body.outputs.values())
        self.down = self.layers(wide, *body.hidden, body.into)
        self.up = self.layers(self.size, *body.hidden[::-1], out)
        self.linear = body.linear and body.layered
        if self.linear:
            self.beside_down = nn.Linear(wide, body.into, bias=False)
            self.beside_up = nn.Linear(self.size, out, bias=False)

    @staticmethod
    def layers(*widths: Any) -> nn.Sequential:
        return stack(*widths)

    def encode(self, x: Tensor) -> Tensor:
        return self.down(x) + self.beside_down(x) if self.linear else self.down(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z) + self.beside_up(z) if self.linear else self.up(z)

    def squared(self, z: Tensor, x: Tensor) -> Tensor:
        return F.mse_loss(self.decode(z), x, reduction="sum") * (0.5 / len(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.squared(self.encode(x), x)


class Denoising(Dense):
    """Noise of deviation 0.3 on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.squared(self.encode(x + 0.3 * torch.randn_like(x)), x)


class TopK(Dense):
    """A tenth of the code stays, the largest of each row."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x)
        values, at = h.topk(round(0.1 * self.size), dim=1, sorted=False)
        return self.squared(torch.zeros_like(h).scatter(1, at, values), x)


class Lifetime(Dense):
    """Each unit is active in a twentieth of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.encode(x))
        least = h.detach().topk(max(1, round(0.05 * len(x))), dim=0, sorted=False).values.amin(0)
        return self.squared(h * (h >= least), x)


class Nested(Dense):
    """Each row keeps the first entries of its code, as many as is drawn."""

    def forward(self, x: Tensor) -> Tensor:
        last = (torch.rand(len(x), 1) * self.size).long()
        return self.squared(self.encode(x) * (torch.arange(self.size) <= last), x)


class Residual(Dense):
    """Layers of one width, normalised, with identity skips."""

    @staticmethod
    def layers(*widths: Any) -> nn.Sequential:
        into, stage, out = widths
        width = stage["width"]
        blocks = [Skip(width, nn.ReLU(inplace=True)) for _ in range(stage["repeat"] - 1)]
        first = [nn.Linear(into, width), nn.LayerNorm(width), nn.ReLU(inplace=True)]
        return nn.Sequential(*first, *blocks, nn.Linear(width, out))


class Skip(nn.Module):
    """A linear layer, normalised and activated, beside an identity."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.activation = activation

    def forward(self, h: Tensor) -> Tensor:
        return h + self.activation(self.norm(self.linear(h)))


class Contractive(Dense):
    """One hidden layer of rectifiers, its Jacobian by the Gram matrices of the two weights."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.down[0](x))
        slope = (h > 0).to(h.dtype)
        first, last = self.down[0].weight, self.down[2].weight
        gram = (last.T @ last) * (first @ first.T)
        norms = ((slope @ gram) * slope).sum(1)
        return self.squared(self.down[2](h), x) + 0.1 * norms.mean()


class Hutchinson(Dense):
    """Two hidden layers of rectifiers, one random row of the Jacobian through the same masks."""

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.down[0](x))
        two = F.relu(self.down[2](one))
        z = self.down[4](two)
        signs = torch.randint(0, 2, z.shape, dtype=torch.int8).to(z.dtype) * 2.0 - 1.0
        row = (signs @ self.down[4].weight) * (two > 0)
        row = ((row @ self.down[2].weight) * (one > 0)) @ self.down[0].weight
        return self.squared(z, x) + 0.1 * row.square().sum(1).mean()


class Contrastive(Dense):
    """Two views of every row, a quarter of each zero, encoded as one batch."""

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, x])
        hidden = torch.rand_like(both).topk(x.shape[1] // 4, dim=1, sorted=False).indices
        u = F.normalize(self.encode(both.scatter(1, hidden, 0.0)), dim=1)
        likeness = (u @ u.T / 0.5).fill_diagonal_(-torch.inf)
        other = torch.arange(len(u)).roll(len(x))
        return self.squared(self.encode(x), x) + F.cross_entropy(likeness, other)


class Vae(Dense):
    """Pixels as coins, a normal posterior and prior."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.down(x).chunk(2, 1)
        return mean, spread

    def bernoulli(self, z: Tensor, x: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.up(z), x, reduction="sum") / len(x)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.moments(x)
        z = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        kl = 0.5 * (mean.square() + spread.exp() - spread - 1.0).sum() / len(x)
        return self.bernoulli(z, x) + kl


class Iwae(Vae):
    """Several draws of each code, weighed."""

    def forward(self, x: Tensor, draws: int = 10) -> Tensor:
        mean, spread = self.moments(x)
        noise = torch.randn(draws, *mean.shape)
        z = mean + noise * (0.5 * spread).exp()
        logits, seen = self.up(z), x.expand(draws, -1, -1)
        nll = F.binary_cross_entropy_with_logits(logits, seen, reduction="none").sum(2)
        score = nll + 0.5 * (z.square() - noise.square() - spread).sum(2)
        return -(torch.logsumexp(-score, 0) - math.log(draws)).mean()


def log_normal(z: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Log-density of each entry."""
    return -0.5 * ((z - mean).square() * (-spread).exp() + spread + math.log(2 * math.pi))


class TotalCorrelation(Vae):
    """The divergence in three parts, of pairs of all rows of a batch."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.rows = int(cast(Any, model.latent).rows)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.moments(x)
        count, total = len(x), self.rows
        z = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        weights = torch.full((count, count), math.log((total - 1) / total / (count - 1)))
        weights.fill_diagonal_(-math.log(total))
        pairs = log_normal(z[:, None], mean, spread)
        own = log_normal(z, mean, spread).sum(1)
        whole = torch.logsumexp(pairs.sum(2) + weights, 1)
        each = torch.logsumexp(pairs + weights[:, :, None], 1).sum(1)
        prior = log_normal(z, torch.zeros(()), torch.zeros(())).sum(1)
        costs = (own - whole) + 6.0 * (whole - each) + (each - prior)
        return self.bernoulli(z, x) + costs.mean()


class Wae(Dense):
    """Three matrices of kernels, of which that of the draws has no gradient."""

    def kernels(self, a: Tensor, b: Tensor) -> Tensor:
        square = (a.square().sum(1)[:, None] + b.square().sum(1) - 2.0 * a @ b.T).clamp_min(0.0)
        total = torch.zeros(())
        for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
            c = 2.0 * self.size * scale
            total = total + c / (c + square)
        return total

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        drawn, n = torch.randn_like(z), len(x)
        off = sum(
            (self.kernels(a, a).fill_diagonal_(0.0).sum() / (n * (n - 1)) for a in (z, drawn)),
            torch.zeros(()),
        )
        return self.squared(z, x) + 10.0 * (off - 2.0 * self.kernels(z, drawn).mean())


class Mixture(Vae):
    """A learnt mixture of normals as prior."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        parts = cast(Any, model.latent).components
        shapes = (parts,), (parts, self.size), (parts, self.size)
        self.prior = nn.ParameterList(torch.zeros(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.moments(x)
        noise = torch.randn_like(mean)
        z = mean + noise * (0.5 * spread).exp()
        log_q = -0.5 * (noise.square() + spread + math.log(2 * math.pi)).sum(1)
        logits, means, spreads = self.prior
        each = log_normal(z[:, None], means, spreads).sum(2)
        log_p = torch.logsumexp(each + logits.log_softmax(0), 1)
        return self.bernoulli(z, x) + (log_q - log_p).mean()


class Vamp(Vae):
    """Learnt inputs in the same pass; squares expanded, so that densities are matrix products."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        count = cast(Any, model.latent).components
        self.learnt = nn.ParameterList([torch.zeros(count, 784)])

    def forward(self, x: Tensor) -> Tensor:
        moments = self.moments(torch.cat([x, *self.learnt]))
        (mean, m), (spread, v) = ((t[: len(x)], t[len(x) :]) for t in moments)
        noise = torch.randn_like(mean)
        z = mean + noise * (0.5 * spread).exp()
        log_q = -0.5 * (noise.square() + spread).sum(1)
        precision = (-v).exp()
        constant = (m.square() * precision + v).sum(1)
        squares = z.square() @ precision.T - 2.0 * (z @ (m * precision).T) + constant
        log_p = torch.logsumexp(-0.5 * squares, 1) - math.log(len(m))
        return self.bernoulli(z, x) + (log_q - log_p).mean()


class Flow(Vae):
    """zuko's own transforms of the posterior."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.steps = copy.deepcopy(cast(Any, model.latent).posterior)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread, context = self.down(x).chunk(3, 1)
        noise = torch.randn_like(mean)
        z = mean + noise * (0.5 * spread).exp()
        log_q = -0.5 * (noise.square() + spread).sum(1)
        for step in self.steps:
            z, volume = step(context).call_and_ladj(z)
            log_q = log_q - volume
        return self.bernoulli(z, x) + (log_q + 0.5 * z.square().sum(1)).mean()


class Fsq(Dense):
    """Eight levels to every entry."""

    def forward(self, x: Tensor) -> Tensor:
        half = 7 * 1.001 / 2
        bounded = torch.tanh(self.encode(x) + math.atanh(0.5 / half)) * half - 0.5
        return self.squared((bounded + (bounded.round() - bounded).detach()) / 4.0, x)


class Books(nn.Module):
    """Quantisation by books that follow running averages; entries out of use begin anew."""

    def __init__(self, books: Tensor) -> None:
        super().__init__()
        self.register_buffer("books", books.clone())
        self.register_buffer("counts", torch.ones(books.shape[:2]))
        self.register_buffer("sums", books.clone())

    @torch.no_grad()
    def forward(self, vectors: Tensor) -> Tensor:
        rest, found = vectors, torch.zeros_like(vectors)
        for book, counts, sums in zip(self.books, self.counts, self.sums, strict=True):
            index = torch.addmm(book.square().sum(1), rest, book.T, alpha=-2.0).argmin(1)
            entry = book[index]
            size = len(book)
            counts.lerp_(torch.bincount(index, minlength=size).to(counts.dtype), 0.01)
            sums.lerp_(torch.zeros_like(sums).index_add_(0, index, rest), 0.01)
            total = counts.sum()
            book.copy_(sums / ((counts + 1e-5) / (total + size * 1e-5) * total)[:, None])
            even = len(rest) / size
            idle = (counts < 0.1 * even).nonzero()[:, 0]
            if len(idle):
                drawn = rest[torch.randint(len(rest), (len(idle),))]
                book[idle], counts[idle], sums[idle] = drawn, even, drawn * even
            found, rest = found + entry, rest - entry
        return found


class ResidualVq(Dense):
    """Books one after the other, each for what is left."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.books = Books(cast(Any, model.latent).books)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x)
        found = self.books(h.detach().view(-1, self.books.books.shape[2])).view_as(h)
        committed = 0.25 * (h - found).square().sum() / len(x)
        return self.squared(h + (found - h).detach(), x) + committed


class Conv(Dense):
    """Strided convolutions and dense layers, and the way back."""

    def __init__(self, model: Model) -> None:
        Bare.__init__(self, model)
        self.build()
        dense = Dense(model)
        self.down, self.up, self.linear = dense.down, dense.up, False

    def build(self) -> None:
        kernel = {"kernel_size": 3, "stride": 2, "padding": 1}
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, **kernel), nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, **kernel), nn.ReLU(inplace=True),
            nn.Conv2d(64, 128, **kernel), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(128, 64, **kernel), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(64, 32, **kernel, output_padding=1), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(32, 1, **kernel, output_padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.down(self.encoder(x).flatten(1)))
        return F.mse_loss(self.decoder(h.view(-1, 128, 4, 4)), x, reduction="sum") * (0.5 / len(x))


class Unet(Conv):
    """Three levels, each with its map handed across."""

    def build(self) -> None:
        same = {"kernel_size": 3, "padding": 1}
        widths = (1, 32, 64, 128)
        self.encoder = nn.ModuleList(nn.Conv2d(a, b, **same) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(2 * b, a, **same) for a, b in reversed([*pairwise(widths)])
        )

    def forward(self, x: Tensor) -> Tensor:
        h, kept = x + 0.3 * torch.randn_like(x), list[Tensor]()
        for layer in self.encoder:
            kept.append(F.relu(layer(h), inplace=True))
            h = F.max_pool2d(kept[-1], 2, ceil_mode=True)
        h = self.up(self.down(h.flatten(1))).view_as(h)
        for layer in self.decoder:
            side = kept.pop()
            high, wide = side.shape[2:]
            h = F.interpolate(h, scale_factor=2.0)[..., :high, :wide]
            h = layer(torch.cat([h, side], 1))
            h = F.relu(h, inplace=True) if kept else h
        return F.mse_loss(h, x, reduction="sum") * (0.5 / len(x))


class VqVae(Bare):
    """Feature maps of 7 x 7 positions, each an entry of one book."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        same, half = {"kernel_size": 5, "padding": 2}, {"kernel_size": 5, "padding": 2, "stride": 2}
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, **same), nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, **half), nn.ReLU(inplace=True),
            nn.Conv2d(32, 16, **same), nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, **half), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(16, 16, **half, output_padding=1), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(16, 32, **same), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(32, 32, **half, output_padding=1), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(32, 1, **same),
        )  # fmt: skip
        self.books = Books(cast(Any, model.latent).books)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        vectors = h.detach().permute(0, 2, 3, 1).reshape(-1, 16)
        found = self.books(vectors).view(-1, 7, 7, 16).permute(0, 3, 1, 2)
        committed = 0.25 * (h - found).square().sum() / len(x)
        out = self.decoder(h + (found - h).detach())
        return F.mse_loss(out, x, reduction="sum") * (0.5 / len(x)) + committed


class Adversarial(Dense):
    """A critic of codes with an optimiser of its own; both learn in every step."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.critics = nn.ModuleList(
            stack(part.entries.stop - part.entries.start, 256, 256, 1)
            for part in cast(Any, model.penalties[0]).parts
        )

    def optimizers(self, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
        theirs = list(self.critics.parameters())
        known = {id(p) for p in theirs}
        ours = [p for p in self.parameters() if id(p) not in known]
        return [
            torch.optim.AdamW(ours, fused=True, **options),
            torch.optim.Adam(theirs, lr=options["lr"], betas=(0.5, 0.999), fused=True),
        ]

    def contest(self, codes: list[Tensor], draws: list[Tensor], weight: float) -> Tensor:
        cost = torch.zeros(())
        for critic, code, drawn in zip(self.critics, codes, draws, strict=True):
            cost = cost + F.softplus(-critic(drawn)).mean()
            cost = cost + F.softplus(critic(code.detach())).mean()
            critic.requires_grad_(False)
            cost = cost + weight * F.softplus(-critic(code)).mean()
            critic.requires_grad_(True)
        return cost

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        return self.squared(z, x) + self.contest([z], [torch.randn_like(z)], 1.0)


class SemiSupervised(Adversarial):
    """Shares of classes beside a style, a critic for each, and labels of the last rows."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.image, self.label = (
            cast(float, model.weight("image")),
            cast(float, model.weight("label")),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.encode(x + 0.3 * torch.randn_like(x))
        shares, style = h[:, :10].softmax(1), h[:, 10:]
        drawn = F.one_hot(torch.randint(10, (len(x),)), 10).float()
        cost = self.contest([shares, style], [drawn, torch.randn_like(style)], 0.3)
        told = F.cross_entropy(h[-KNOWN:, :10], y[-KNOWN:, 0], reduction="sum") / len(x)
        return (
            self.image * self.squared(torch.cat([shares, style], 1), x) + self.label * told + cost
        )


class Recurrent(Dense):
    """A series read into a state and written out of one, last step first."""

    def __init__(self, model: Model) -> None:
        Bare.__init__(self, model)
        self.reader = nn.LSTM(3, 64, batch_first=True)
        self.writer = nn.LSTM(64, 64, batch_first=True)
        self.last = nn.Linear(64, 3)
        dense = Dense(model)
        self.down, self.up, self.linear = dense.down, dense.up, False

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.down(self.reader(x)[1][0][0]))
        state = torch.tanh(h)[None]
        seen = h[:, None].expand(-1, x.shape[1], -1)
        out = self.last(self.writer(seen, (state, torch.zeros_like(state)))[0]).flip(1)
        return F.mse_loss(out, x, reduction="sum") * (0.5 / len(x))


class Block(nn.Module):
    """Attention and two layers, norms first."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.between = nn.Linear(width, width), nn.LayerNorm(width)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, t: Tensor) -> Tensor:
        b, n, w = t.shape
        q, k, v = (
            p.view(b, n, self.heads, -1).transpose(1, 2)
            for p in self.qkv(self.before(t)).chunk(3, dim=2)
        )
        t = t + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, w))
        return t + self.shrink(F.gelu(self.grow(self.between(t))))


class Transformer(Dense):
    """Patches of 4 x 4 pixels, two blocks there and one back."""

    extra = 0  # inputs of a token beside its pixels

    def __init__(self, model: Model) -> None:
        Bare.__init__(self, model)
        self.place, self.query = (nn.Parameter(torch.zeros(49, 64)) for _ in range(2))
        self.head, self.bias = nn.Parameter(torch.zeros(16, 64)), nn.Parameter(torch.zeros(784))
        self.embed = nn.Linear(16 + self.extra, 64)
        self.encoder = nn.ModuleList([Block(), Block()])
        self.norm, self.leave, self.enter = nn.LayerNorm(64), nn.Linear(64, 16), nn.Linear(16, 64)
        self.decoder, self.end = Block(), nn.LayerNorm(64)
        dense = Dense(model)
        self.down, self.up, self.linear = dense.down, dense.up, False

    @staticmethod
    def patches(x: Tensor) -> Tensor:
        return x.view(-1, 7, 4, 7, 4).transpose(2, 3).reshape(-1, 49, 16)

    def through(self, t: Tensor) -> Tensor:
        for block in self.encoder:
            t = block(t)
        return self.leave(self.norm(t))

    def written(self, places: Tensor) -> Tensor:
        h = self.up(self.down(places.flatten(1))).view(-1, 49, 16)
        out = F.linear(self.end(self.decoder(self.enter(h) + self.query)), self.head)
        return out.view(-1, 7, 7, 4, 4).transpose(2, 3).reshape(-1, 784) + self.bias

    def forward(self, x: Tensor) -> Tensor:
        out = self.written(self.through(self.place + self.embed(self.patches(x))))
        return F.mse_loss(out, x, reduction="sum") * (0.5 / len(x))


class Masked(Transformer):
    """Twelve of 49 patches are seen, the pixels of the others scored."""

    extra = 16

    def forward(self, x: Tensor) -> Tensor:
        at = torch.rand(len(x), 49).topk(12, dim=1, sorted=False).indices[:, :, None]
        seen = self.patches(x).gather(1, at.expand(-1, -1, 16))
        t = self.embed(torch.cat([seen, torch.ones_like(seen)], 2)) + self.place[at[:, :, 0]]
        left = self.through(t) * (49 / 12)
        index = at.expand(-1, -1, 16)
        out = self.written(torch.zeros(len(x), 49, 16).scatter(1, index, left))
        scored = torch.ones(len(x), 49).scatter(1, at[:, :, 0], 0.0)
        apart = self.patches(out - x).square().sum(2)
        return (apart * scored).sum() * (0.5 / len(x))


class Imputation(Dense):
    """Wide residual layers; entries hidden at a rate of each row's own, and scored alone."""

    def __init__(self, model: Model) -> None:
        Bare.__init__(self, model)
        first, stage = cast(Any, model.fusion).hidden
        blocks = [Skip(stage["width"], nn.SiLU()) for _ in range(stage["repeat"])]
        self.down = nn.Sequential(
            nn.Linear(128, first), nn.LayerNorm(first), nn.SiLU(), *blocks, nn.Linear(first, first)
        )
        self.up = nn.Linear(first, 64)

    def forward(self, x: Tensor) -> Tensor:
        rates = 0.5 * torch.rand(len(x), 1)
        hidden = (torch.rand_like(x) < rates).to(x.dtype)
        seen = 1.0 - hidden
        out = self.up(self.down(torch.cat([x * seen, seen], 1)))
        return ((out - x).square() * hidden).sum() * (0.5 / len(x))


class Ladder(Bare):
    """Two ways down, normalised by batch, and one up with a cost in every layer."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        body: Any = model.fusion
        self.image, self.label = (
            cast(float, model.weight("image")),
            cast(float, model.weight("label")),
        )
        self.prices = (0.0, *body.prices[1:])
        self.weights = nn.ParameterList(torch.empty(p.shape) for p in model.parameters())
        self.count = len(body.rungs)
        self.running = {n: torch.zeros(2, n) for n in (784, *body.hidden, body.code)}

    def normed(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        var, mean = torch.var_mean(h, 0, correction=0)
        with torch.no_grad():
            self.running[len(mean)].lerp_(torch.stack([mean, var]), 0.1)
        std = (var + 1e-10).sqrt()
        return (h - mean) / std, mean, std

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        own, top = list(self.weights), self.count
        clean, noisy = x, x + 0.3 * torch.randn_like(x)
        sides, targets = [noisy], [(x, torch.zeros(()), torch.ones(()))]
        for level in range(top):
            shift = own.pop(0)
            scale = own.pop(0) if level == top - 1 else None
            weight = own.pop(0)
            targets.append(self.normed(F.linear(clean, weight)))
            z = self.normed(F.linear(noisy, weight))[0]
            sides.append(z + 0.3 * torch.randn_like(z))
            clean, noisy = F.relu(targets[-1][0] + shift), sides[-1] + shift
            noisy = F.relu(noisy) if scale is None else noisy * scale
        told = F.cross_entropy(noisy[-KNOWN:], y[-KNOWN:, 0], reduction="sum")
        loss, found = self.label * told / len(x), noisy.softmax(1)
        for level in range(top, -1, -1):
            u = self.normed(found if level == top else F.linear(found, own.pop(0)))[0]
            a = own.pop(0)
            mean = a[0] * torch.sigmoid(a[1] * u + a[2]) + a[3] * u + a[4]
            kept = a[5] * torch.sigmoid(a[6] * u + a[7]) + a[8] * u + a[9]
            found = (sides[level] - mean) * kept + mean
            target, middle, std = targets[level]
            if level:
                loss = loss + self.prices[level] * F.mse_loss((found - middle) / std, target)
        return loss + self.image * F.mse_loss(found, x, reduction="sum") * (0.5 / len(x))
