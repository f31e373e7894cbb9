"""A prior over code indices: which code of normality a cell has, told from the codes around it. An experiment's only.

Below, how unlikely the code of each cell is, of normals and of test views, by several priors. Codes are those of the
trained network's own codebook, or of one that all classes share, coarse k-means centres of what the memories read; the
latter's priors are learnt per class, and once for all classes. Each prior is two: no normal is judged by what it
taught.

v, n views; h w the grid of a stride; K codes, of which K itself stands for padding and hidden cells; C channels.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flows.experiments.trial import BenchmarkContext
from pvqae.calibration.normals import CellSample
from pvqae.core import seeding
from pvqae.core.files import write_tensors
from pvqae.core.tensors import read_tensors
from pvqae.datasets.splits import fraction
from pvqae.features.examples import Batch, Examples
from pvqae.inference.measures import STRIDES, Memory, memory_input
from pvqae.model.autoencoder import Autoencoder, nearest, usage
from pvqae.model.backbones import Backbone, Features, on_grid

_REACH = 4  # cells that a code's surroundings go to each side: 9 x 9, of which the middle 3 x 3 is hidden
_EMBEDDED, _WIDTH = 12, 64
_CELLS, _CHUNK = 3200, 8  # cells of a step, views judged at once
_RATE = 4e-3
_PSEUDO = 8.0  # views of the codes' shares anywhere that each place's frequencies start with
_FLOOR = 1e-3  # of a probability, as in the cross-entropy of `pvqae.inference.measures`


@dataclass(frozen=True, eq=False)
class Codes:
    """Code indices of views: the training set of a prior, or what it judges."""

    index: Tensor  # v x h x w, 0 .. K-1, K on padding
    count: int  # K

    def of(self, chosen: Tensor) -> "Codes":
        """Return some of the views."""
        return Codes(self.index[chosen], self.count)

    @property
    def valid(self) -> Tensor:
        """Which cells are image, v x h x w."""
        return self.index != self.count


@dataclass(frozen=True, eq=False)
class Codebook:
    """Few codes of standardised features, coarse enough for a code to be predictable."""

    mean: Tensor  # C
    scale: Tensor  # C
    codes: Tensor  # K x C

    @staticmethod
    def fit(vectors_nC: Tensor, count: int, seed: int) -> "Codebook":
        """Fit k-means centres to vectors."""
        from sklearn.cluster import MiniBatchKMeans

        mean, scale = vectors_nC.mean(0), vectors_nC.std(0).clamp_min(1e-6).reciprocal()
        means = MiniBatchKMeans(min(count, len(vectors_nC)), n_init=1, batch_size=4096, random_state=seed % 2**32)
        centres = means.fit(((vectors_nC - mean) * scale).numpy()).cluster_centers_
        return Codebook(mean, scale, torch.from_numpy(centres).float())

    def encode(self, x_vChw: Tensor, valid_vhw: Tensor) -> Tensor:
        """Return the index of each cell's nearest code, v x h x w; K on padding."""
        return encode(x_vChw.movedim(1, -1).sub(self.mean).mul(self.scale).movedim(-1, 1), self.codes, valid_vhw)


def encode(x_vDhw: Tensor, codes_KD: Tensor, valid_vhw: Tensor) -> Tensor:
    """Return the index of each cell's nearest code, v x h x w; K on padding."""
    index = nearest(x_vDhw.movedim(1, -1).flatten(0, 2), codes_KD)[1].view(valid_vhw.shape)
    return index.masked_fill(~valid_vhw, len(codes_KD))


class CodePrior(nn.Module):
    """One masked convolution over the embedded codes around a cell, and two layers; the cell's own 3x3 is hidden.

    It begins as the frequencies of codes at each place, and adds what the surroundings tell, as the budget prior does.
    """

    hole: Tensor
    base: Tensor

    def __init__(self, seen: Codes):
        super().__init__()
        side = 2 * _REACH + 1
        self.count = seen.count
        self.embed = nn.Embedding(seen.count + 1, _EMBEDDED)
        self.around = nn.Conv2d(_EMBEDDED, _WIDTH, side)
        self.position = nn.Parameter(torch.zeros(*seen.index.shape[1:], _WIDTH))
        last = nn.Linear(_WIDTH, seen.count)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        hidden = nn.Linear(_WIDTH, _WIDTH)
        self.output = nn.Sequential(nn.GELU(), nn.Dropout(0.2), hidden, nn.GELU(), nn.Dropout(0.2), last)
        hole = torch.ones(side, side)
        hole[_REACH - 1 : _REACH + 2, _REACH - 1 : _REACH + 2] = 0
        self.register_buffer("hole", hole)
        self.register_buffer("base", frequencies(seen))

    def forward(self, index_vhw: Tensor) -> Tensor:
        """Return the log-odds of each code at each cell, v x h x w x K."""
        padded = F.pad(index_vhw, (_REACH,) * 4, value=self.count)
        context = F.conv2d(self.embed(padded).movedim(-1, 1), self.around.weight * self.hole, self.around.bias)
        found: Tensor = self.base + self.output(context.movedim(1, -1) + self.position)
        return found

    def nats(self, index_vhw: Tensor, reduction: str) -> Tensor:
        """Return the cross-entropy of the cells' codes; 0 on padding, which a mean leaves out."""
        odds = self(index_vhw).flatten(0, 2)
        return F.cross_entropy(odds, index_vhw.flatten(), ignore_index=self.count, reduction=reduction)


def frequencies(seen: Codes) -> Tensor:
    """Return the log share of each code at each place, h x w x K, drawn towards its share anywhere."""
    flat = seen.index.flatten(1)
    places = torch.arange(flat.shape[1]).expand_as(flat)
    counts = torch.zeros(flat.shape[1], seen.count + 1)
    counts.index_put_((places, flat), torch.ones(()), accumulate=True)
    anywhere = (counts[:, :-1].sum(0) + 1) / (counts[:, :-1].sum() + seen.count)
    shares = counts[:, :-1] + _PSEUDO * anywhere
    return (shares / shares.sum(1, keepdim=True)).log().view(*seen.index.shape[1:], seen.count)


def fit(seen: Sequence[Codes], steps: int, seed: int, *names: str) -> CodePrior:
    """Learn from the views of some classes, each class as often as another."""
    seeding.initialise(seed, "code prior", *names)
    every = Codes(torch.cat([x.index for x in seen]), seen[0].count)
    prior, draws = CodePrior(every), seeding.generator(seed, "views", *names)
    batch = max(1, _CELLS // every.index[0].numel())
    optimiser = torch.optim.AdamW(prior.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=max(2, steps))
    for _ in range(steps):
        classes = torch.randint(len(seen), (batch,), generator=draws).tolist()
        views = [seen[c].index[int(torch.randint(len(seen[c].index), (), generator=draws))] for c in classes]
        optimiser.zero_grad(set_to_none=True)
        prior.nats(torch.stack(views), "mean").backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return prior.eval().requires_grad_(False)


@torch.no_grad()
def nats(prior: CodePrior, judged: Codes) -> Tensor:
    """Return the cross-entropy of each cell's code, v x h x w, at most that of the floor; 0 on padding."""
    found = [prior.nats(x, "none").view(x.shape) for x in torch.split(judged.index, _CHUNK)]
    return torch.cat(found).clamp_max(-math.log(_FLOOR))


@dataclass(frozen=True, eq=False)
class Halves:
    """Two priors, each of which learnt from the other half's normals: no normal is judged by what it taught."""

    priors: tuple[CodePrior, CodePrior]

    def normals(self, codes: Codes, second_v: Tensor) -> Tensor:
        """Return the nats of the normals learnt from, v x h x w. `second_v`: which of them are of the second half."""
        first, second = (nats(prior, codes) for prior in self.priors)
        return torch.where(second_v[:, None, None], second, first)

    def unseen(self, codes: Codes) -> Tensor:
        """Return the mean nats under both, v x h x w."""
        return (nats(self.priors[0], codes) + nats(self.priors[1], codes)) / 2


def fit_halves(seen: Sequence[tuple[Codes, Tensor]], steps: int, seed: int, *names: str) -> Halves:
    """Learn from each class's codes; with them goes which of its views are of the second half."""
    first = fit([codes.of(second) for codes, second in seen if second.any()], steps, seed, *names, "first")
    second = fit([codes.of(~second) for codes, second in seen if (~second).any()], steps, seed, *names, "second")
    return Halves((first, second))


def as_tensors(named: Mapping[str, Halves]) -> dict[str, Tensor]:
    """Return the state of all priors."""
    return {
        f"{name}/{half}/{key}": value.contiguous()
        for name, halves in named.items()
        for half, prior in enumerate(halves.priors)
        for key, value in prior.state_dict().items()
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Halves]:
    """Return the priors whose state `as_tensors` gave."""
    states: dict[str, list[dict[str, Tensor]]] = {}
    for place, value in tensors.items():
        name, half, key = place.split("/")
        states.setdefault(name, [{}, {}])[int(half)][key] = value
    return {name: Halves((_restored(first), _restored(second))) for name, (first, second) in states.items()}


def _restored(state: dict[str, Tensor]) -> CodePrior:
    height, width, count = state["base"].shape
    prior = CodePrior(Codes(torch.zeros(1, height, width, dtype=torch.long), count))
    prior.load_state_dict(state)
    return prior.eval().requires_grad_(False)


_STRIDES = ("stride16", "stride8")
_VIEWS = 16  # read at once
Pair = tuple[Tensor, Tensor]  # a measure of some views and which of its cells are image, n x h x w each
Facts = dict[str, float]


@dataclass(frozen=True)
class Effort:
    """How much is learnt."""

    steps: int = 150  # of a prior; of a universal one as many for each class
    codes: int = 128  # of the shared codebook
    cells: int = 6000  # of each class that the shared codebook is fitted to


@dataclass(frozen=True, eq=False)
class Judged:
    """What one prior says."""

    normals: Pair
    unseen: Pair
    facts: Facts  # perplexity of the codes of normals; nats a cell of the prior, and of the frequencies at each place


@dataclass(frozen=True, eq=False)
class Shared:
    """What the classes of a seed share, made when it is first asked for; `contexts` gives each class, read anew."""

    contexts: Callable[[], Iterator[BenchmarkContext]]
    effort: Effort
    folder: Path  # kept here
    key: str  # names classes, params and code
    seed: int

    @cached_property
    def books(self) -> dict[str, Codebook]:
        """The codebook of each stride."""
        file = self.folder / f"books-{self.key}.safetensors"
        if not file.exists():
            every = [_vectors(context, self.effort.cells) for context in self.contexts()]
            made = {
                stride: Codebook.fit(torch.cat([one[stride] for one in every]), self.effort.codes, self.seed)
                for stride in _STRIDES
            }
            write_tensors(file, {f"{s}.{name}": x for s, book in made.items() for name, x in vars(book).items()})
        found = read_tensors(file)
        return {s: Codebook(*(found[f"{s}.{name}"] for name in ("mean", "scale", "codes"))) for s in _STRIDES}

    @cached_property
    def universal(self) -> dict[str, Halves]:
        """The priors of each stride that learnt from every class."""
        file = self.folder / f"universal-{self.key}.safetensors"
        if not file.exists():
            write_tensors(file, as_tensors(self._learnt()))
        return from_tensors(read_tensors(file))

    def _learnt(self) -> dict[str, Halves]:
        seen: dict[str, list[tuple[Codes, Tensor]]] = {stride: [] for stride in _STRIDES}
        for context in self.contexts():
            for stride in _STRIDES:
                codes = _encoded(context.examples, self.reader(context.backbone, stride))
                seen[stride].append((codes, _second(context)))
        return {
            stride: fit_halves(classes, self.effort.steps * len(classes), self.seed, "universal", stride)
            for stride, classes in seen.items()
        }

    def reader(self, backbone: Backbone, stride: str) -> "_Reader":
        """Return what encodes features by the shared codebook."""
        book = self.books[stride]

        def read(features: Features, valid_BSS: Tensor) -> Codes:
            x = memory_input(backbone, features, stride)
            return Codes(book.encode(x, on_grid(valid_BSS, x.shape[-2:])), len(book.codes))

        return read


_Reader = Callable[[Features, Tensor], Codes]


def judged(context: BenchmarkContext, shared: Shared, network: Autoencoder) -> Iterator[tuple[str, Judged]]:
    """Yield the name of each prior and what it says of the class."""
    second, seed = _second(context), context.params.seed
    steps = shared.effort.steps
    for stride in _STRIDES:
        readers = {"network": _network_reader(network, stride), "class": shared.reader(context.backbone, stride)}
        for name, reader in readers.items():
            normals, unseen = (_encoded(views, reader) for views in (context.examples, context.unseen))
            table = fit_halves([(normals, second)], 0, seed)  # has learnt nothing but frequencies
            own = fit_halves([(normals, second)], steps, seed, context.subject.name, name, stride)
            yield f"{name} codes, {stride}", _judged(own, table, normals, unseen, second)
        yield f"universal codes, {stride}", _judged(shared.universal[stride], table, normals, unseen, second)


def _judged(halves: Halves, table: Halves, normals: Codes, unseen: Codes, second_n: Tensor) -> Judged:
    own, valid = halves.normals(normals, second_n), normals.valid
    facts = {
        "perplexity": usage(normals.index[valid], normals.count)[1],
        "nats": float(own[valid].mean()),
        "frequencies": float(table.normals(normals, second_n)[valid].mean()),
    }
    pairs = ((own, valid), (halves.unseen(unseen), unseen.valid))
    seen, test = ((Memory.smoothed(values, cells), cells) for values, cells in pairs)
    return Judged(seen, test, facts)


def _network_reader(network: Autoencoder, stride: str) -> _Reader:
    level, codes = STRIDES.index(stride), network.codebook.codes

    def read(features: Features, valid_BSS: Tensor) -> Codes:
        x = network.codes(features)[level]
        return Codes(encode(x, codes, on_grid(valid_BSS, x.shape[-2:])), len(codes))

    return read


@torch.no_grad()
def _encoded(examples: Examples, reader: _Reader) -> Codes:
    parts = [reader(_features(batch), batch.valid) for _, batch in examples.batches(_VIEWS)]
    return Codes(torch.cat([part.index for part in parts]), parts[0].count)


def _vectors(context: BenchmarkContext, most: int) -> dict[str, Tensor]:
    """Return at most so many cells of the class's normals at each stride, m x C."""
    samples, found = dict[str, CellSample](), dict[str, list[Tensor]]()
    for indices, batch in context.examples.batches(_VIEWS):
        for stride in _STRIDES:
            x = memory_input(context.backbone, _features(batch), stride)
            if stride not in samples:
                shape, name = x.shape[-2:], f"shared/{stride}"
                samples[stride] = CellSample.draw(context.examples.cells(shape), most, context.params.seed, name)
            found.setdefault(stride, []).append(samples[stride].vectors(x, int(indices[0])))
    return {stride: torch.cat(parts) for stride, parts in found.items()}


def _features(batch: Batch) -> Features:
    assert batch.features is not None, "codes are of frozen features"
    return batch.features


def _second(context: BenchmarkContext) -> Tensor:
    """Return which views of `context.examples` are of the second half of the parts, n."""
    second = torch.tensor([fraction("code prior", group) < 0.5 for group in context.normals["group_id"]])
    return second[context.examples.rows]


_VIEWS = 16  # read at once
