"""The record of conditions: what stacks, what is dropped, what joins, and what is refused."""

import pytest
import torch

from ldm_mini.cond import Cond


def full(batch=2, value=0.0):
    return Cond(concat=torch.full((batch, 3, 4, 4), value), context=torch.full((batch, 5, 8), value),
                mask=torch.ones(batch, 5, dtype=torch.bool), vector=torch.full((batch, 6), value))


PARTS = ("concat", "context", "mask", "vector")


def test_to_changes_numbers_and_leaves_the_mask_boolean():
    cond = full().to(torch.float16)
    assert cond.concat.dtype == cond.context.dtype == cond.vector.dtype == torch.float16
    assert cond.mask.dtype == full().to("cpu").mask.dtype == torch.bool
    moved = full().to("meta", torch.float64)
    assert moved.vector.dtype == torch.float64 and all(getattr(moved, part).device.type == "meta" for part in PARTS)


def test_index_takes_samples_of_every_part():
    cond = Cond.stack([full(2, 0.0), full(3, 1.0)])
    assert all(len(getattr(cond, part)) == 5 for part in PARTS)
    some = cond[3:]
    assert all(len(getattr(some, part)) == 2 for part in PARTS) and (some.vector == 1).all()
    assert cond[[0, 4]].vector[:, 0].tolist() == [0, 1]


def test_stack_keeps_the_order_and_takes_any_iterable():
    cond = Cond.stack(full(1, v) for v in (1.0, 2.0, 3.0))
    assert cond.vector[:, 0].tolist() == [1, 2, 3] and cond.mask.shape == (3, 5)
    assert Cond.stack([Cond(), Cond()]).vector is None


def test_one_condition_alone_is_stacked_as_it_is():
    cond = Cond(context=torch.randn(2, 3, 4), vector=torch.randn(2, 5))
    alone = Cond.stack([cond])
    assert alone.context.equal(cond.context) and alone.vector.equal(cond.vector) and alone.concat is None


def test_where_drops_whole_samples():
    cond = full(4, 1.0).where(torch.tensor([True, False, True, False]), full(4, -1.0))
    for part in ("concat", "context", "vector"):
        values = getattr(cond, part).flatten(1)
        assert values.tolist() == [[v] * values.shape[1] for v in (1.0, -1.0, 1.0, -1.0)]
    own, other = torch.tensor([[True, False]] * 2), torch.tensor([[False, True]] * 2)
    kept = Cond(context=torch.zeros(2, 2, 1), mask=own).where(torch.tensor([False, True]),
                                                              Cond(context=torch.zeros(2, 2, 1), mask=other))
    assert kept.mask.tolist() == [[False, True], [True, False]]


def test_gradients_reach_only_what_is_kept():
    own, other = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    Cond(vector=own).where(torch.tensor([True, False]), Cond(vector=other)).vector.sum().backward()
    assert own.grad.tolist() == [[1] * 3, [0] * 3] and other.grad.tolist() == [[0] * 3, [1] * 3]


@pytest.mark.parametrize("a, b, part", [
    (Cond(vector=torch.zeros(2, 3)), Cond(), "vector"), (full(), Cond(vector=torch.zeros(2, 6)), "concat"),
    (Cond(context=torch.zeros(2, 5, 8)), Cond(context=torch.zeros(2, 4, 8)), "context"),
    (Cond(context=torch.zeros(2, 5, 8), mask=torch.ones(2, 5).bool()), Cond(context=torch.zeros(2, 5, 8)), "mask")])
def test_conditions_that_disagree_are_refused_by_name(a, b, part):
    for act in (lambda: Cond.stack([a, b]), lambda: a.where(torch.tensor([True, False]), b)):
        with pytest.raises(ValueError, match=f"`{part}`"):
            act()


def test_join_puts_each_part_where_it_belongs():
    a = Cond(concat=torch.zeros(2, 1, 4, 4), context=torch.zeros(2, 3, 8), vector=torch.full((2, 6), 2.0))
    b = Cond(concat=torch.ones(2, 2, 4, 4), context=torch.ones(2, 5, 8), vector=torch.full((2, 6), 3.0),
             mask=torch.tensor([[True, False, True, True, False]] * 2))
    joint = Cond.join([a, b])
    assert joint.concat.shape == (2, 3, 4, 4) and joint.concat.mean(dim=(0, 2, 3)).tolist() == [0, 1, 1]
    assert joint.context.shape == (2, 8, 8) and (joint.vector == 5).all()
    assert joint.mask.tolist() == [[True] * 3 + [True, False, True, True, False]] * 2


def test_join_leaves_absent_parts_absent():
    joint = Cond.join([Cond(context=torch.zeros(2, 3, 8)), Cond(vector=torch.zeros(2, 6)), Cond()])
    assert joint.concat is None and joint.mask is None and joint.context.shape == (2, 3, 8)
    assert all(getattr(Cond.join([]), part) is None for part in PARTS)


@pytest.mark.parametrize("a, b", [
    (Cond(vector=torch.zeros(2, 6)), Cond(vector=torch.zeros(2, 1))),           # would broadcast in silence
    (Cond(vector=torch.zeros(2, 6)), Cond(vector=torch.zeros(1, 6))),
    (Cond(context=torch.zeros(2, 3, 8)), Cond(context=torch.zeros(2, 3, 4))),
    (Cond(concat=torch.zeros(2, 3, 8, 8)), Cond(concat=torch.zeros(2, 3, 4, 4))),
    (full(2), full(1))])
def test_join_refuses_what_does_not_fit(a, b):
    with pytest.raises((ValueError, RuntimeError), match="equal size|tensors must match|the same samples"):
        Cond.join([a, b])


def test_it_is_a_record_not_a_sequence():
    with pytest.raises(TypeError):
        list(Cond())
    with pytest.raises(AttributeError):
        full().vector = None
    a = full()
    assert a == a and a != full()
