"""Gradient tracking on push-sum: where data is spread unevenly, plain SGP stalls, and Push-DIGing does not.

Nedic, Olshevsky and Shi (2017), Achieving Geometric Convergence for Distributed Optimization over Time-Varying Graphs,
Algorithm 2. With a constant step SGP stops at a floor, because each rank pulls to its own optimum in every round.
Push-DIGing lets the gradients gossip, too: every rank descends along an estimate of the whole gradient, and converges
linearly. Its u, v and y are w z, w and w * tracked here, so one PushSum over (z, tracked) is all it takes.

    pushsum run -np 8 examples/push_diging.py
    pushsum run -np 4 examples/push_diging.py --staleness 1
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

import pushsum_opt as ps


def push_diging(z, gradient, rate, rounds, **options):
    """Minimise sum_i a_i f_i, given the gradient of f_i; return z after every round."""
    path, old = [], gradient(z)
    tracked = old.copy()  # y(0) = a_i grad f_i(x(0)), as w(0) = a_i
    with ps.PushSum([z, tracked], **options) as push_sum:
        for _ in range(rounds):
            z -= rate * tracked  # u <- u - rate y. Both sides hold the factor w: nothing is to be scaled
            push_sum.mix()  # u, y and v <- C(k) u, C(k) y and C(k) v
            new = gradient(z)
            with push_sum.local_step():  # y <- y + a_i (new - old): scaled by a_i / w
                tracked += new - old
            old = new
            path.append(z.copy())
    return np.array(path)


def sgp(z, gradient, rate, rounds, **options):
    """Stochastic Gradient Push, for comparison."""
    path = []
    with ps.PushSum([z], **options) as push_sum:
        for _ in range(rounds):
            with push_sum.local_step():
                z -= rate * gradient(z)
            push_sum.mix()
            path.append(z.copy())
    return np.array(path)


def uneven_shards(classes, size, concentration=0.2, seed=0):
    """Deal every class out in parts drawn from a Dirichlet distribution; each rank gets at least one sample."""
    random = np.random.default_rng(seed)
    owner = np.empty(len(classes), int)
    for members in (np.flatnonzero(classes == one) for one in np.unique(classes)):
        owner[members] = random.choice(size, len(members), p=random.dirichlet(np.full(size, concentration)))
    owner[random.permutation(len(classes))[:size]] = np.arange(size)
    return [np.flatnonzero(owner == rank) for rank in range(size)]


def ridge_regression(shard=slice(None)):
    """Return the gradient and the minimum of a strongly convex f_i: is a digit 5 or more? 65 unknowns."""
    pixels, digits = load_digits(return_X_y=True)
    inputs = np.c_[(pixels - pixels.mean(0)) / 16, np.ones(len(pixels))][shard]
    labels = np.where(digits >= 5, 1.0, -1.0)[shard]
    hessian = inputs.T @ inputs / len(inputs) + 0.1 * np.eye(65)
    slope = inputs.T @ labels / len(inputs)
    return (lambda z: hessian @ z - slope), np.linalg.solve(hessian, slope)


def distances(algorithm, rate, rounds, staleness=0, comm=None):
    """Collective. Return the root mean square over ranks of the distance to the optimum, after every round."""
    rank, size = (ps.rank(), ps.size()) if comm is None else (comm.rank, comm.size)
    shard = uneven_shards(load_digits().target, size)[rank]
    gradient, _ = ridge_regression(shard)
    _, optimum = ridge_regression()
    options = {"data_weight": len(shard), "staleness": staleness, "comm": comm}
    path = algorithm(np.zeros(65), gradient, rate, rounds, **options)
    return np.sqrt(ps.average(np.square(path - optimum).sum(1), data_weight=1.0, comm=comm))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--staleness", type=int, default=0)
    words = parser.parse_args()
    plain, tracking = (distances(one, words.rate, words.rounds, words.staleness) for one in (sgp, push_diging))
    for k in range(min(100, words.rounds) - 1, words.rounds if ps.rank() == 0 else 0, 100):
        print(f"round {k + 1}: distance to the optimum: SGP {plain[k]:.1e}, Push-DIGing {tracking[k]:.1e}", flush=True)


if __name__ == "__main__":
    main()
