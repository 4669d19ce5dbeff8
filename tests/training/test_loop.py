"""The loop: it learns, goes on bit for bit, skips what is not finite, and says when it stops."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from ldm.errors import InputError, NumericError
from ldm.training.checkpoints import latest
from ldm.training.ema import Average
from ldm.training.loop import METRICS, Plan, Run, train
from ldm.training.rates import rate
from tests.tiny import same, unit_noise


class Trainee:
    """A small network that learns a linear map, with all that a run has."""

    def __init__(self, seed=0, spoil=()):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=0.02)
        self.average, self.spoil, self.calls = Average(self.model, 0.9), spoil, []

    def loss(self, step, part, rows=8):
        self.calls.append((step, part))
        x = unit_noise(step, 2 * rows, 4)[part * rows : (part + 1) * rows]
        loss = (self.model(x) - x[:, :2]).square().mean()
        return loss * float("nan") if step in self.spoil else loss

    def run(self, folder, steps=12, config=None, watch=None, **plan):
        defaults = {"save_every": 5, "log_every": 1, "rate": rate("cosine", 12, 2)}
        run = Run(
            self.model, self.optimiser, self.loss, Plan(steps, **defaults | plan), folder,
            {"size": 3} if config is None else config, self.average,
        )  # fmt: skip
        return train(run, watch=watch, progress=False)

    def state(self):
        return {k: v.clone() for k, v in self.model.state_dict().items()} | self.average.state()


def test_the_loss_falls_and_is_logged(tmp_path):
    trainee, seen = Trainee(), []
    assert (
        trainee.run(
            tmp_path, 60, rate=rate("constant", 60), watch=lambda step, told: seen.append(told["loss"])
        )
        == 60
    )
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61)) and [x["loss"] for x in lines] == seen
    assert sum(seen[-10:]) < 0.5 * sum(seen[:10])


@pytest.mark.parametrize("stop", [3, 5, 7, 10])
def test_an_interrupted_run_is_the_one_that_was_not(tmp_path, stop):
    whole, first = Trainee(), Trainee()
    second = Trainee(seed=1 if stop > 5 else 0)  # its weights are the checkpoint's, where there is one
    whole.run(tmp_path / "whole")

    def leave(step, told):
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(tmp_path / "a", watch=leave)
    second.run(tmp_path / "a")
    assert same(second.state(), whole.state())
    assert same(latest(tmp_path / "a").tensors["optimiser"], latest(tmp_path / "whole").tensors["optimiser"])
    steps = [json.loads(line)["step"] for line in (tmp_path / "a" / METRICS).read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_rates_are_those_of_the_schedule(tmp_path):
    trainee, seen = Trainee(), []
    trainee.run(
        tmp_path,
        watch=lambda step, told: seen.append((told["rate"], trainee.optimiser.param_groups[0]["lr"])),
    )
    factors = [rate("cosine", 12, 2)(step) for step in range(12)]
    assert seen == [(0.02 * factor, 0.02 * factor) for factor in factors]


def test_parts_of_a_batch_are_the_batch(tmp_path):
    class Plain(Trainee):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(4, 2)
            self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.1)
            self.average = Average(self.model)

    one, two = Plain(), Plain()
    two.model.load_state_dict(one.model.state_dict())
    two.average = Average(two.model)
    one.loss = lambda step, part: Trainee.loss(one, step, 0, rows=16)
    one.run(tmp_path / "one", clip=0)
    two.run(tmp_path / "two", accumulate=2, clip=0)
    assert all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True)
    )
    assert two.calls[:3] == [(0, 0), (0, 1), (1, 0)]


def test_the_gradient_is_cut(tmp_path):
    trainee, free = Trainee(), Trainee()
    for one, clip in ((trainee, 0.01), (free, 0.0)):
        one.optimiser = torch.optim.SGD(one.model.parameters(), lr=1.0)
        before = [p.detach().clone() for p in one.model.parameters()]
        one.run(tmp_path / str(clip), 1, clip=clip, rate=rate("constant", 1))
        moved = torch.cat(
            [(p - q).flatten() for p, q in zip(one.model.parameters(), before, strict=True)]
        ).norm()
        assert float(moved) == pytest.approx(0.01, rel=1e-3) if clip else float(moved) > 0.05


def test_a_bad_step_changes_nothing_but_is_counted(tmp_path):
    trainee, states = Trainee(spoil={2, 3}), []
    trainee.run(
        tmp_path,
        6,
        watch=lambda step, told: states.append(
            (told["bad"], [p.detach().clone() for p in trainee.model.parameters()])
        ),
    )
    assert [bad for bad, _ in states] == [0, 0, 1, 2, 0, 0]
    for a, b in ((1, 2), (2, 3)):
        assert all(torch.equal(p, q) for p, q in zip(states[a][1], states[b][1], strict=True))
    assert not torch.equal(states[3][1][0], states[4][1][0])
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert lines[2]["loss"] is None and lines[4]["loss"] > 0


def test_a_run_of_bad_steps_stops_and_leaves_the_checkpoint(tmp_path):
    trainee = Trainee(spoil=range(6, 100))
    with pytest.raises(NumericError, match="steps 7 to 9 had no finite gradient"):
        trainee.run(tmp_path, most_bad=3)
    assert latest(tmp_path).step == 5
    with pytest.raises(NumericError, match="steps 7 to 9"):
        Trainee(spoil=range(6, 100)).run(tmp_path, most_bad=3)


def test_another_config_is_refused_by_its_fields(tmp_path):
    Trainee().run(tmp_path, 5)
    with pytest.raises(InputError, match="size: was 3, is 4"):
        Trainee().run(tmp_path, 6, config={"size": 4})
    assert Trainee().run(tmp_path, 6, config={"size": 4}, free=("size",)) == 6


@pytest.mark.parametrize(
    "plan", [{"steps": 0}, {"accumulate": 0}, {"clip": -1}, {"save_every": 0}, {"most_bad": 0}]
)
def test_a_plan_that_makes_no_sense_is_refused(tmp_path, plan):
    with pytest.raises(InputError, match=next(iter(plan))):
        Trainee().run(tmp_path, **{"steps": 3} | plan)
    assert not list(tmp_path.iterdir())


def test_a_run_that_ends_in_a_look_looks_again(tmp_path):
    looks = []

    def run(folder, stop=None):
        trainee = Trainee()
        made = Run(
            trainee.model, trainee.optimiser, trainee.loss,
            Plan(6, save_every=2, log_every=1, look_every=2), folder, average=trainee.average,
        )  # fmt: skip

        def look(step):
            looks.append(step)
            if step == stop:
                raise KeyboardInterrupt
            return {"seen": float(step)}

        made.look = look
        train(made, progress=False)
        return [
            {name: value for name, value in json.loads(line).items() if "second" not in name}
            for line in (folder / METRICS).read_text().splitlines()
        ]

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "left", stop=4)
    assert run(tmp_path / "left") == whole
    assert [line["step"] for line in whole] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in whole if "seen" in line] == [2, 4, 6]


def test_a_loss_that_draws_from_the_global_generators_goes_on_too(tmp_path):
    class Drawing(Trainee):
        def loss(self, step, part, rows=8):
            more = torch.randn(()) + random.random() + np.random.rand()
            return super().loss(step, part, rows) * (1 + float(more) ** 2)

    def seeded(trainee):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        return trainee

    whole = seeded(Drawing())
    whole.run(tmp_path / "whole")

    def leave(step, told):
        if step == 7:
            raise KeyboardInterrupt

    left = seeded(Drawing())
    with pytest.raises(KeyboardInterrupt):
        left.run(tmp_path / "left", watch=leave)
    again = Drawing(seed=5)
    again.run(tmp_path / "left")
    assert same(again.state(), whole.state())
