"""How unlikely the code of each cell is among the codes around it, of normals and of test views, by several priors.

Codes are those of the trained network's own codebook, or of one that all classes share, coarse k-means centres of what
the memories read; the latter's priors are learnt per class, and once for all classes. Each prior is two: no normal is
judged by what it taught. n views; h w the grid of a stride.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from flows.experiments import code_prior
from flows.experiments.code_prior import Codebook, Codes, Halves
from flows.experiments.trial import BenchmarkContext
from pvqae.calibration.normals import CellSample
from pvqae.core.files import write_tensors
from pvqae.core.tensors import read_tensors
from pvqae.datasets.splits import fraction
from pvqae.features.examples import Batch, Examples
from pvqae.inference.measures import STRIDES, Memory, memory_input
from pvqae.model.autoencoder import Autoencoder
from pvqae.model.backbones import Backbone, Features, on_grid
from pvqae.model.codebook import usage

_STRIDES = ("stride16", "stride8")
_CHUNK = 16
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
            write_tensors(file, code_prior.as_tensors(self._learnt()))
        return code_prior.from_tensors(read_tensors(file))

    def _learnt(self) -> dict[str, Halves]:
        seen: dict[str, list[tuple[Codes, Tensor]]] = {stride: [] for stride in _STRIDES}
        for context in self.contexts():
            for stride in _STRIDES:
                codes = _encoded(context.examples, self.reader(context.backbone, stride))
                seen[stride].append((codes, _second(context)))
        return {
            stride: code_prior.fit_halves(classes, self.effort.steps * len(classes), self.seed, "universal", stride)
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
            table = code_prior.fit_halves([(normals, second)], 0, seed)  # has learnt nothing but frequencies
            own = code_prior.fit_halves([(normals, second)], steps, seed, context.subject.name, name, stride)
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
        return Codes(code_prior.encode(x, codes, on_grid(valid_BSS, x.shape[-2:])), len(codes))

    return read


@torch.no_grad()
def _encoded(examples: Examples, reader: _Reader) -> Codes:
    parts = [reader(_features(batch), batch.valid) for _, batch in examples.batches(_CHUNK)]
    return Codes(torch.cat([part.index for part in parts]), parts[0].count)


def _vectors(context: BenchmarkContext, most: int) -> dict[str, Tensor]:
    """Return at most so many cells of the class's normals at each stride, m x C."""
    samples, found = dict[str, CellSample](), dict[str, list[Tensor]]()
    for indices, batch in context.examples.batches(_CHUNK):
        for stride in _STRIDES:
            x = memory_input(context.backbone, _features(batch), stride)
            if stride not in samples:
                shape, name = x.shape[-2:], f"shared/{stride}"
                samples[stride] = CellSample.draw(context.examples.valid, shape, most, context.params.seed, name)
            found.setdefault(stride, []).append(samples[stride].vectors(x, int(indices[0])))
    return {stride: torch.cat(parts) for stride, parts in found.items()}


def _features(batch: Batch) -> Features:
    assert batch.features is not None, "codes are of frozen features"
    return batch.features


def _second(context: BenchmarkContext) -> Tensor:
    """Return which views of `context.examples` are of the second half of the parts, n."""
    second = torch.tensor([fraction("code prior", group) < 0.5 for group in context.normals["group_id"]])
    return second[context.examples.rows]
