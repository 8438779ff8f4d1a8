import random
from collections import Counter
from itertools import chain, count, islice

from hypothesis import given
from hypothesis import strategies as st

from data.order import problems_of_rollout

sizes = st.integers(1, 40)


@given(num=sizes, per_rollout=sizes, seed=st.integers(0, 2**40))
def test_every_epoch_holds_every_problem_once(num, per_rollout, seed):
    rollouts = (problems_of_rollout(num, per_rollout, i, seed) for i in count())
    stream = list(islice(chain.from_iterable(rollouts), 3 * num))
    for epoch in range(3):
        assert sorted(stream[epoch * num : (epoch + 1) * num]) == list(range(num))


@given(num=sizes, per_rollout=sizes, seed=st.integers(0, 100), rollouts=st.lists(st.integers(0, 50), min_size=1))
def test_a_rollout_does_not_depend_on_what_was_asked_before(num, per_rollout, seed, rollouts):
    forwards = [problems_of_rollout(num, per_rollout, r, seed) for r in rollouts]
    random.seed(0)  # nor on the global generator
    backwards = [problems_of_rollout(num, per_rollout, r, seed) for r in reversed(rollouts)]
    assert forwards == backwards[::-1]


@given(num=sizes, small=sizes, large=sizes)
def test_the_stream_does_not_depend_on_how_it_is_cut(num, small, large):
    cut = [
        list(chain.from_iterable(problems_of_rollout(num, n, i, 7) for i in range(200 // n + 1)))
        for n in (small, large)
    ]
    assert cut[0][:200] == cut[1][:200]


def test_epochs_and_seeds_differ():
    orders = [tuple(problems_of_rollout(50, 50, epoch, seed)) for epoch in range(4) for seed in range(4)]
    assert len(set(orders)) == 16


def test_each_problem_is_first_equally_often():
    firsts = Counter(problems_of_rollout(4, 1, 4 * epoch, seed=3)[0] for epoch in range(2000))
    assert all(abs(n - 500) < 100 for n in firsts.values())  # 5 standard deviations


def test_the_order_is_pinned():
    """A checkpoint holds one integer: another Python or another version of this file must give the same problems."""
    assert problems_of_rollout(10, 6, 0, 42) + problems_of_rollout(10, 6, 1, 42) == PINNED


PINNED = [6, 8, 4, 3, 2, 5, 1, 9, 7, 0, 1, 4]
