"""Laws of the diffusion loss and of its weightings."""

from functools import partial
from math import inf, nan

import pytest
import torch

from ldm.errors import InputError
from ldm.schedulers import EPS, X0, Levels, Schedule, V
from ldm.training import ByTime, debiased, diffusion_loss, min_snr, p2, truncated_snr, uniform
from tests.tiny import unit_noise

PREDICTIONS = (EPS, V, X0)
SCHEDULE = Schedule()
T = torch.tensor([0, 1, 250, 500, 999])
ON_X0 = (min_snr, partial(min_snr, gamma=1.0), truncated_snr, p2, partial(p2, k=2.0, gamma=0.5), debiased)


def snrs(schedule=SCHEDULE, t=T):
    """By the definition, alpha_bar / (1 - alpha_bar), in Python's floats."""
    bar = [float(schedule.alpha_bar[i]) for i in t]
    return [a / (1 - a) if a < 1 else inf for a in bar]


def by_hand(law, schedule=SCHEDULE):
    return pytest.approx([law(s) for s in snrs(schedule)], rel=1e-5)


def weights(weight, prediction, schedule=SCHEDULE, t=T):
    found = weight(schedule.levels(t), prediction)
    assert found.shape == t.shape and found.dtype == torch.float32
    return found.tolist()


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_is_the_papers_for_each_prediction(gamma):
    """Hang et al. 2023: x0 min(SNR, gamma), eps min(SNR, gamma) / SNR, v min(SNR, gamma) / (SNR + 1)."""
    weight = partial(min_snr, gamma=gamma)
    assert weights(weight, X0) == by_hand(lambda s: min(s, gamma))
    assert weights(weight, EPS) == by_hand(lambda s: min(s, gamma) / s)
    assert weights(weight, V) == by_hand(lambda s: min(s, gamma) / (s + 1))


def test_min_snr_takes_five_unless_told():
    assert weights(min_snr, X0) == weights(partial(min_snr, gamma=5.0), X0) != weights(truncated_snr, X0)


def test_the_others_are_their_papers():
    assert weights(truncated_snr, X0) == by_hand(lambda s: max(s, 1.0))
    assert weights(truncated_snr, V) == by_hand(lambda s: max(s, 1.0) / (s + 1))  # Salimans & Ho 2022
    assert weights(debiased, EPS) == by_hand(lambda s: s**-0.5)  # Yu et al. 2023
    for k, gamma in ((1.0, 1.0), (1.0, 0.5), (0.3, 2.0)):
        law = by_hand(lambda s, k=k, gamma=gamma: 1 / (k + s) ** gamma)  # Choi et al. 2022
        assert weights(partial(p2, k=k, gamma=gamma), EPS) == law
    assert weights(p2, EPS) == weights(partial(p2, k=1.0, gamma=1.0), EPS)


def test_uniform_is_one_on_whatever_the_network_predicts():
    assert all(weights(uniform, prediction) == [1.0] * len(T) for prediction in PREDICTIONS)


def said(prediction, x0, level_of):
    """A network that believes in the clean latent x0, in the words of a prediction."""

    def predict(x, t):
        level = level_of(t)
        return prediction.target(x0, (x - level.alpha * x0) / level.sigma, level)

    return predict


def losses(weight, prediction, schedule=SCHEDULE, t=T):
    """Of one belief about x0, the same for every prediction."""
    shape = (len(t), 2, 4, 4)
    x0, eps, belief = unit_noise(0, *shape), unit_noise(1, *shape), unit_noise(2, *shape)
    predict = said(prediction, belief, schedule.levels)
    return diffusion_loss(predict, x0, eps, t, schedule, prediction, weight)


@pytest.mark.parametrize("weight", ON_X0)
def test_one_error_of_x0_is_one_loss_whatever_is_predicted(weight):
    eps, v, x0 = (losses(weight, prediction) for prediction in PREDICTIONS)
    assert torch.allclose(eps, x0, rtol=1e-4) and torch.allclose(v, x0, rtol=1e-4)


def test_with_uniform_it_is_not():
    eps, v, x0 = (losses(uniform, prediction) for prediction in PREDICTIONS)
    assert not torch.allclose(eps, x0, rtol=0.5) and not torch.allclose(v, x0, rtol=0.5)


def test_the_loss_is_the_mean_square_of_each_image():
    x0, eps = unit_noise(0, 5, 2, 4, 4), unit_noise(1, 5, 2, 4, 4)
    net = lambda x, t: 0.3 * x + t.reshape(-1, 1, 1, 1) / 1000  # noqa: E731
    for prediction in PREDICTIONS:
        found = diffusion_loss(net, x0, eps, T, SCHEDULE, prediction, min_snr)
        for i, t in enumerate(T.tolist()):
            level = SCHEDULE.at(t)
            x = level.alpha * x0[i] + level.sigma * eps[i]
            target = {"eps": eps[i], "x0": x0[i], "v": level.alpha * eps[i] - level.sigma * x0[i]}
            error = 0.3 * x + t / 1000 - target[prediction.name]
            w = min(snrs()[i], 5) / {"eps": snrs()[i], "x0": 1, "v": snrs()[i] + 1}[prediction.name]
            assert float(found[i]) == pytest.approx(w * float(error.square().mean()), rel=1e-4)


def test_a_network_that_knows_the_answer_has_no_loss():
    x0, eps = unit_noise(0, 5, 2, 4, 4), unit_noise(1, 5, 2, 4, 4)
    for prediction in PREDICTIONS:
        out = prediction.target(x0, eps, SCHEDULE.levels(T))
        assert float(diffusion_loss(lambda x, t, o=out: o, x0, eps, T, SCHEDULE, prediction).abs().max()) == 0


def test_the_network_sees_what_the_schedule_noises_and_its_steps():
    seen = {}
    x0, eps = unit_noise(0, 5, 2, 4, 4), unit_noise(1, 5, 2, 4, 4)

    def predict(x, t):
        seen.update(x=x, t=t)
        return x

    diffusion_loss(predict, x0, eps, T, SCHEDULE, EPS)
    assert torch.equal(seen["x"], SCHEDULE.add_noise(x0, eps, T)) and torch.equal(seen["t"], T)


def test_half_precision_is_measured_in_float32():
    x0, eps = unit_noise(0, 5, 2, 4, 4).half(), unit_noise(1, 5, 2, 4, 4).half()
    for net in (lambda x, t: x.half() * 1000, lambda x, t: x.double() * 1000):
        found = diffusion_loss(net, x0, eps, T, SCHEDULE, EPS)
        assert found.dtype == torch.float32 and found.isfinite().all()


@pytest.mark.parametrize("weight", (uniform, *ON_X0))
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: p.name)
def test_weights_are_finite_at_both_ends(weight, prediction):
    """No signal, as the last step of a zero-terminal-SNR schedule has, and no noise."""
    zero = Schedule(zero_snr=True)
    assert snrs(zero)[-1] == 0
    assert all(0 <= w <= 1e4 for w in weights(weight, prediction, zero, torch.arange(1000)))
    assert losses(uniform, prediction).isfinite().all()
    clean = Levels(torch.zeros(1), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    assert 0 <= float(weight(clean, prediction)) <= 1e4


def test_the_limits_are_taken():
    """By hand: at SNR = 0, and at SNR without end."""
    silent = Levels(torch.zeros(1), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    clean = Levels(torch.zeros(1), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    table = {  # eps, v, x0 without signal, then without noise
        min_snr: ((1, 0, 0), (0, 0, 5)),
        truncated_snr: ((1e4, 1, 1), (1, 1, 1e4)),
        p2: ((1, 0, 0), (0, 0, 1)),
        debiased: ((1e4, 0, 0), (0, 0, 1e4)),
    }
    for weight, (without_signal, without_noise) in table.items():
        for level, expected in ((silent, without_signal), (clean, without_noise)):
            found = [float(weight(level, prediction)) for prediction in PREDICTIONS]
            assert found == pytest.approx(expected, abs=1e-6), weight


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: p.name)
@pytest.mark.parametrize("weight", ON_X0)
def test_nothing_is_cut_off_on_stable_diffusions_schedule(weight, prediction):
    assert max(weights(weight, prediction, t=torch.arange(1000))) < 2000


@pytest.mark.parametrize(
    "shapes",
    [((5, 2, 4, 4), (5, 2, 4, 1)), ((4, 2, 4, 4), (4, 2, 4, 4)), ((5, 2, 4), (5, 2, 4))],
)
def test_shapes_that_would_spread_over_one_another_are_refused(shapes):
    x0, eps = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(InputError, match="must be of one shape"):
        diffusion_loss(lambda x, t: x, x0, eps, T, SCHEDULE, EPS)


@pytest.mark.parametrize("shape", [(5, 4, 4, 4), (5, 1, 4, 4), (1, 2, 4, 4)])
def test_a_network_must_return_what_it_was_given(shape):
    x = torch.zeros(5, 2, 4, 4)
    with pytest.raises(InputError, match="must return the shape"):
        diffusion_loss(lambda x, t: torch.zeros(shape), x, x, T, SCHEDULE, EPS)


def test_by_time_is_the_mean_of_each_part():
    by_time, t = ByTime(Schedule(steps=10), bins=4), torch.tensor([0, 1, 2, 3, 4, 5, 9, 9])
    assert by_time.starts() == [0, 3, 5, 8]
    for part in (slice(0, 3), slice(3, 8)):
        by_time.add(t[part], t[part].float() ** 2)
    assert by_time.means().tolist() == pytest.approx([5 / 3, 25 / 2, 25, 81])
    assert [int(n) for n in by_time.counts] == [3, 2, 1, 2]


def test_by_time_says_where_nothing_was():
    by_time = ByTime(SCHEDULE, bins=2)
    by_time.add(torch.tensor([999], dtype=torch.int16), torch.tensor([2.0], requires_grad=True))
    assert by_time.means().tolist() == pytest.approx([nan, 2.0], nan_ok=True)
    assert not by_time.means().requires_grad


@pytest.mark.parametrize("bins", [1, 3, 7, 999, 1000])
def test_every_step_is_in_the_part_that_starts_last_before_it(bins):
    by_time = ByTime(SCHEDULE, bins)
    by_time.add(torch.arange(1000), torch.ones(1000))
    assert by_time.counts.tolist() == [
        b - a for a, b in zip(by_time.starts(), [*by_time.starts()[1:], 1000], strict=True)
    ]


@pytest.mark.parametrize("bins", [0, 1001, 2.5])
def test_there_are_no_more_parts_than_steps(bins):
    with pytest.raises(InputError, match="bins must be"):
        ByTime(SCHEDULE, bins)
