"""The kernels' threads: each item of work once and phases in order, whatever holds a thread up; how many are used."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from roclab.lm.engine.cpu import build
from roclab.lm.engine.cpu.runner import CPURunner, Trial

from .test_kernels import IDS, checkpoint_of

LATE = """
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>
static __thread unsigned luck; /* now and then a thread is held up, wherever it is */
static void hold_up(void) {
    luck = luck * 1103515245 + 12345 + (unsigned)(size_t)pthread_self();
    if (luck >> 16 & 255) return;
    usleep(luck >> 24 & 1 ? 2000 : 50);
}
#undef atomic_load
#define atomic_load(x) (hold_up(), atomic_load_explicit(x, memory_order_seq_cst))
#include "pool.h"
enum { ITEMS = 97 };
static pool threads;
static volatile int phases, items; /* of the job; the next one has others */
static atomic_int done[40][ITEMS], wrong;
static void work(void *unused, int thread) {
    (void)unused;
    for (int f = 0; f < phases; f++) {
        int total = f % 3 ? items : 1;
        for (int at, end; take(&threads, thread, total, total, &at, &end); finish(&threads, thread, end - at, total))
            for (int i = at; i < end; i++) {
                for (int j = 0; f && j < ((f - 1) % 3 ? items : 1); j++) /* all of the phase before */
                    wrong += done[f - 1][j] != 1;
                done[f][i]++;
            }
        next_phase(&threads, thread);
    }
}
int main(void) {
    pool_open(&threads);
    pool_resize(&threads, 4);
    atomic_store(&threads.front, ~UINT64_C(0) - ((uint64_t)200 * PHASES << ITEM_BITS)); /* the numbers begin anew */
    for (int n = 0; n < 400; n++) {
        threads.threads = 1 + n * 7 % 4;
        phases = 1 + n * 13 % 40, items = 1 + n * 31 % ITEMS;
        pool_run(&threads, work, NULL);
        for (int f = 0; f < 40; f++)
            for (int i = 0; i < ITEMS; i++) {
                wrong += done[f][i] != (f < phases && i < (f % 3 ? items : 1));
                done[f][i] = 0;
            }
        if (n % 50 == 49) pool_resize(&threads, 2 + n % 3);
    }
    pool_close(&threads);
    printf("wrong: %d\\n", (int)wrong);
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_threads_that_are_held_up_do_each_item_once_and_phases_in_order(tmp_path):
    """A thread may still be on its way through one job when the next begins: it must not take the next one's items."""
    (tmp_path / "late.c").write_text(LATE, encoding="utf-8")
    sources = Path(build.__file__).parent
    command = ["cc", "-O2", "-std=gnu11", f"-I{sources}", "late.c", "-o", "late", "-lpthread"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "late"], capture_output=True, text=True, timeout=30)
    assert done.stdout == "wrong: 0\n", done.stderr


def test_the_first_steps_try_each_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr("roclab.lm.engine.cpu.runner.usable_cores", lambda: 3)
    checkpoint = checkpoint_of(tmp_path)
    model, one = CPURunner(checkpoint), CPURunner(checkpoint, threads=1)
    trial = model._trial
    sequence, alone = model.new_sequence(64), one.new_sequence(64)
    for sq, m in ((sequence, model), (alone, one)):
        m.forward([(sq, IDS, 1)])  # a prompt is no trial
    assert not any(trial.took.values())
    assert model.most_threads == 3
    for i in range(Trial.ROUNDS * 3):
        assert [len(trial.took[n]) for n in (1, 2, 3)] == [min(4, i), min(4, max(0, i - 4)), max(0, i - 8)]
        assert model.threads == 3  # until all were tried
        assert torch.equal(model.forward([(sequence, [i], 1)]), one.forward([(alone, [i], 1)]))
    assert 1 <= model.threads <= model.most_threads <= 3
    model.forward([(sequence, [1], 1)])
    assert not any(trial.took.values())  # that was no trial


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [({1: 10, 2: 6, 4: 5.9}, (2, 4)), ({1: 10, 2: 9.9, 4: 12}, (1, 4)), ({1: 10, 2: 30, 4: 40}, (1, 1))],
)
def test_the_fewest_threads_that_are_about_the_fastest(seconds, chosen):
    trial, found = Trial(4), None
    while found is None:
        tried = trial.next()
        assert tried is not None
        slow = 10 if not trial.took[tried] else 1  # the first time is left out
        found = trial.add(tried, slow * seconds[tried])
    assert found == chosen
    assert [trial.next() for _ in range(Trial.AGAIN + 1)] == [None] * Trial.AGAIN + [1]
