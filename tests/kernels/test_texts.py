"""What a text encoder says by graphs is what it says."""

import copy
from weakref import ref

import pytest
import torch

pytest.importorskip("triton")

from ldm_kernels.texts import Reader

from ldm.conditioning import encode_ids
from tests import reduced
from tests.kernels.graphed import Again
from tests.tiny import uncollected


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def both(name="sdxl", at=-1):
    """A text encoder whose texts go through graphs, its recorder, and one that has none."""
    plain, graphed = (reduced.make(name).text_encoders[at] for _ in range(2))
    record = Again()
    graphed.pooled = Reader(graphed, recorder=lambda: record)
    return graphed, record, plain


def texts(encoder, seed=0, rows=2, length=12):
    return torch.randint(
        0, encoder.config.vocab, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def same(one, other):
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("name", "at"), [("sdxl", 0), ("sdxl", 1), ("sd1", 0), ("sd2", 0)])
def test_graphs_say_what_the_encoder_says(name, at):
    graphed, record, plain = both(name, at)
    for seed in range(5):
        ids = texts(plain, seed)
        assert same(encode_ids(ids, graphed), encode_ids(ids, plain))
    assert (record.recorded, record.replayed) == (1, 3)
    first, second = (encode_ids(texts(plain, seed), graphed)[0] for seed in (0, 1))
    assert torch.equal(first, encode_ids(texts(plain, 0), plain)[0])  # which is no place of the graph
    assert not torch.equal(first, second)


def test_each_size_and_skip_has_its_own():
    graphed, record, plain = both()
    for _ in range(3):
        for rows, length, skip in [(1, 12, 0), (2, 12, 0), (1, 9, 0), (1, 12, 1)]:
            ids = texts(plain, rows=rows, length=length)
            assert same(encode_ids(ids, graphed, skip), encode_ids(ids, plain, skip))
    assert (record.recorded, record.replayed) == (4, 4)


def test_who_looks_into_it_or_learns_is_shown_all():
    graphed, record, plain = both()
    ids, seen = texts(plain), []
    for _ in range(3):
        encode_ids(ids, graphed)
    hook = graphed.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    encode_ids(ids, graphed)
    hook.remove()
    with torch.enable_grad():
        graphed.norm.weight.requires_grad_()
        assert encode_ids(ids, graphed)[1].requires_grad
    assert seen == [1] and (record.recorded, record.replayed) == (1, 1)


def test_added_tokens_are_heard():
    graphed, record, plain = both("sd1", 0)
    for _ in range(3):
        encode_ids(texts(plain), graphed)
    vectors = torch.randn(1, plain.config.width)
    ids = texts(plain)
    ids[0, 3], again = (encoder.tokens.add(vectors).start for encoder in (graphed, plain))
    assert ids[0, 3] == again
    assert same(encode_ids(ids, graphed), encode_ids(ids, plain))
    assert record.replayed == 1


def test_weights_that_lie_elsewhere_are_heard():
    graphed, record, plain = both()
    ids = texts(plain)
    for _ in range(3):
        encode_ids(ids, graphed)
    for encoder in (graphed, plain):
        encoder.blocks[1].fc1.weight.data = 2 * encoder.blocks[1].fc1.weight
    assert same(encode_ids(ids, graphed), encode_ids(ids, plain)) and record.replayed == 1
    for encoder in (graphed, plain):
        state = {name: 0.9 * weight for name, weight in encoder.state_dict().items()}
        encoder.load_state_dict(state, assign=True)
    assert same(encode_ids(ids, graphed), encode_ids(ids, plain)) and record.replayed == 1


def test_without_a_gpu_cuda_records_nothing():
    graphed, _, plain = both()
    graphed.pooled = Reader(graphed)
    for seed in range(4):
        assert same(encode_ids(texts(plain, seed), graphed), encode_ids(texts(plain, seed), plain))
    assert not graphed.pooled.graphs


def test_a_copy_says_what_its_own_weights_say_and_all_are_freed():
    graphed, _, plain = both()
    ids = texts(plain)
    other = copy.deepcopy(graphed)
    graphed.norm.weight.zero_()
    assert same(encode_ids(ids, other), encode_ids(ids, plain))
    assert not same(encode_ids(ids, graphed), encode_ids(ids, plain))
    for _ in range(3):
        encode_ids(ids, graphed)
    gone = [ref(graphed), ref(graphed.blocks[0]), ref(graphed.norm.weight)]
    with uncollected():
        del graphed
        assert [thing() for thing in gone] == [None] * 3
