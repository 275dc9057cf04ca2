"""`replaced`: a method of one object, for a time, whatever ends first."""

import torch

from iqguide.guidance.diffusers.replace import observed, replaced


class Adder:
    def add(self, number):
        return number + 1


def test_the_class_stands_again_and_other_objects_never_see_it():
    one, other = Adder(), Adder()
    with replaced(one, "add", lambda number: 0):
        assert (one.add(1), other.add(1)) == (0, 2)
    assert one.add(1) == 2
    assert vars(one) == {}


def test_what_the_object_had_of_its_own_comes_back():
    one, own = Adder(), (lambda number: 7)
    one.add = own
    with replaced(one, "add", lambda number: 0):
        pass
    assert one.add is own


def test_replacements_may_end_in_any_order():
    one = Adder()
    outer, inner = replaced(one, "add", lambda n: 10), replaced(one, "add", lambda n: 20)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert one.add(1) == 20  # the latest that is open
    inner.__exit__(None, None, None)
    assert vars(one) == {}


def test_what_others_have_put_there_meanwhile_stays():
    one, theirs = Adder(), (lambda n: 30)
    with replaced(one, "add", lambda n: 10):
        one.add = theirs
    assert one.add is theirs


def test_networks_can_be_silenced():
    layer, images = torch.nn.Linear(2, 2), torch.ones(1, 2)
    expected = layer(images)
    with replaced(layer, "forward", lambda x: x * 0):
        assert layer(images).equal(torch.zeros(1, 2))
    assert layer(images).equal(expected)
    assert "forward" not in vars(layer)


def test_observers_see_names_and_result():
    one, seen = Adder(), []
    with observed(one, "add", lambda arguments, result: seen.append((dict(arguments), result))):
        assert one.add(2) == 3
    assert seen == [({"number": 2}, 3)]
    assert vars(one) == {}
