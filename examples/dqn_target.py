"""A deep Q-network with a target network (Mnih et al. 2015) on a walk along a cliff, written in NumPy.

The grid is Sutton & Barto's cliff (example 6.6): from the lower left corner to the lower right one, 13 steps around the
cliff at -1 each; a step onto the cliff ends the episode. The values that the network learns from come from its target,
which follows slowly or by copies. Printed is the return of the greedy policy; the optimum is -13.

    python examples/dqn_target.py --episodes 300 --seed 0
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

import polyak

ROWS, COLUMNS, FALL, OPTIMUM = 4, 12, -30.0, -13.0
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
LONGEST, BATCH, TAU = 40, 128, 0.02
SCALE = 0.1  # of rewards, so that values are of the order of one


class Cliff:
    """States are cells, 0 in the upper left corner, row by row."""

    start, goal = (ROWS - 1) * COLUMNS, ROWS * COLUMNS - 1

    def step(self, state: int, action: int) -> tuple[int, float, bool]:
        """The next state, the reward, and whether the episode ends."""
        row = min(max(state // COLUMNS + MOVES[action][0], 0), ROWS - 1)
        column = min(max(state % COLUMNS + MOVES[action][1], 0), COLUMNS - 1)
        there = row * COLUMNS + column
        fallen = row == ROWS - 1 and 0 < column < COLUMNS - 1
        return there, FALL if fallen else -1.0, fallen or there == self.goal


def network() -> Any:
    """A cell, as one of 48 inputs, to the values of four moves."""
    return keras.Sequential([keras.Input((ROWS * COLUMNS,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(4)])


def cells(states: Any) -> Any:
    """States as one-hot rows."""
    return np.eye(ROWS * COLUMNS, dtype="float32")[states]


class Memory:
    """The last transitions: state, action, reward, next state, and 1 where the episode goes on."""

    def __init__(self, size: int) -> None:
        self.rows = np.zeros((size, 5), "float32")
        self.seen = 0

    def add(self, *row: float) -> None:
        self.rows[self.seen % len(self.rows)] = row
        self.seen += 1

    def sample(self, draw: np.random.Generator) -> tuple[Any, ...]:
        state, action, reward, there, on = self.rows[draw.integers(0, min(self.seen, len(self.rows)), BATCH)].T
        return cells(state.astype(int)), action.astype("int32"), reward, cells(there.astype(int)), on


def learner(online: Any, target: polyak.Average) -> Any:
    """One step of Q-learning in a tf.function; the target follows in it."""
    optimizer = keras.optimizers.Adam(0.003)
    optimizer.build(online.trainable_variables)

    @tf.function
    def step(states: Any, actions: Any, rewards: Any, there: Any, on: Any) -> None:
        # Double Q-learning (van Hasselt et al. 2016): the online network chooses the move, the target says its value.
        best = tf.one_hot(tf.argmax(online(there), axis=-1), len(MOVES))
        aims = SCALE * rewards + on * tf.reduce_sum(best * target(there), axis=-1)
        with tf.GradientTape() as tape:
            values = tf.reduce_sum(tf.one_hot(actions, len(MOVES)) * online(states), axis=-1)
            loss = tf.reduce_mean(keras.losses.huber(aims[:, None], values[:, None]))
        optimizer.apply(tape.gradient(loss, online.trainable_variables), online.trainable_variables)
        target.update()

    return step


def greedy_return(network: Any) -> float:
    """The sum of rewards, from the start, of the moves that the network values most."""
    best = np.argmax(keras.ops.convert_to_numpy(network(cells(np.arange(ROWS * COLUMNS)))), axis=-1)
    cliff, state, total = Cliff(), Cliff.start, 0.0
    for _ in range(LONGEST):
        state, reward, over = cliff.step(state, int(best[state]))
        total += reward
        if over:
            break
    return total


def train(online: Any, target: polyak.Average, episodes: int, draw: np.random.Generator) -> int:
    """Episodes until the greedy policy of the target is optimal; ``episodes`` if it never is."""
    cliff, memory, step = Cliff(), Memory(10_000), learner(online, target)
    for episode in range(episodes):
        # Exploring starts: any cell above the cliff.
        state, over, moves = int(draw.integers(0, cliff.start + 1)), False, 0
        while not over and moves < LONGEST:
            explores = draw.random() < 0.3
            action = int(draw.integers(4) if explores else np.argmax(online(cells([state]))))
            there, reward, over = cliff.step(state, action)
            memory.add(state, action, reward, there, not over)
            state, moves = there, moves + 1
            if memory.seen >= BATCH:
                step(*memory.sample(draw))
        if episode % 5 == 4 and greedy_return(target) == OPTIMUM:
            return episode + 1
    return episodes


def main() -> None:
    """Train, and print what came of it."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--episodes", type=int, default=300)
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    keras.utils.set_random_seed(asked.seed)
    online = network()
    target = polyak.Target(online, tau=TAU)
    needed = train(online, target, asked.episodes, np.random.default_rng(asked.seed))
    print(f"{needed} episodes, {target.count:,} updates of the target")
    print(f"return of the greedy policy: {greedy_return(target):.0f} (optimum {OPTIMUM:.0f})")


if __name__ == "__main__":
    main()
