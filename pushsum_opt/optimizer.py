"""PushSumOptimizer: the contract of a torch optimizer around an optimizer and a push-sum, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import nn

from . import _torch_compat, combinations, settings
from .algorithms import Algorithm, Gossip
from .algorithms.join import Join
from .arguments import Adaptive, Buffers, Communicator, DType, GraphLike, Nonfinite, OnLoss, Staleness, WithinHost
from .faults import Loss
from .observe import Metrics
from .push_sum import PushSum, rounds
from .transport import calling
from .wrapped import beginning, points, state
from .wrapped.calls import call_zero_grad
from .wrapped.host_gradients import HostGradients
from .wrapped.local_step import LocalStep
from .wrapped.model_state import check_rank, copy_to_host, watched
from .wrapped.parts import Parts, check_arguments
from .wrapped.putting_back import put_back
from .wrapped.watching import Watch

__all__ = ["PushSumOptimizer"]

CONSTRUCTION = "PushSumOptimizer(...)"


class PushSumOptimizer(torch.optim.Optimizer):
    """Wraps a torch optimizer: every step is a local step, then a round of push-sum gossip.

    Stochastic Gradient Push (Assran et al. 2019, Algorithm 1). Each rank pushes a share of its model to a few peers
    after every step and merges what its in-peers pushed; no rank waits for all others. The parameters always hold the
    de-biased estimate z, so evaluation, clipping, weight decay and checkpoints work as they do without it.

    Construction is collective: all ranks compare what they will exchange; then rank 0's parameters, buffers and
    optimizer state reach every rank.

    Args:
        optimizer: any ``torch.optim.Optimizer``; it keeps its state, hooks and schedulers. Available as ``.optimizer``.
        model: the module that holds the parameters. Without it only the optimizer's parameters are known: buffers and
            frozen parameters stay as they are on each rank.
        graph: who sends to whom: a :class:`~pushsum_opt.graphs.Graph`, a function ``(rank, size, round) -> peers``, or
            None for the default of this size.
        staleness: rounds between posting a message and merging it. 0: synchronous. tau >= 1: a thread moves messages
            during forward and backward. "unbounded": merge what has come, and wait for no rank.
        within_host: how ranks that share a host work together; a host is then one participant of the gossip, with one
            push weight, and ``graph`` is over hosts. "gradients": backward() averages their gradients at its end.
            "ddp": the model is wrapped in torch's DistributedDataParallel over the ranks of the host, which does that.
            "fsdp": the model is sharded over them by FSDP2 (``fully_shard``). None: each rank for itself.
        gossip_every: a round of gossip after every so many steps, with local steps in between (local SGD); default 1.
        algorithm: what a round is where it is not always gossip: one of :mod:`pushsum_opt.algorithms`, or None.
        data_weight: v_i > 0, this rank's part in the average, such as its number of samples.
        buffers: what happens to floating buffers such as BatchNorm's running statistics. "local": each rank keeps its
            own, always. "average": each rank keeps its own, and :meth:`averaged` averages them. "gossip": they travel
            and are mixed with the parameters. None: "average" where a model is given, otherwise "local".
        gossip_state: names of entries of ``optimizer.state[p]`` that hold points in parameter space, such as ``("z",)``
            of schedule-free optimizers: they are exchanged and averaged with the parameters.
        adaptive: "corrected" makes torch's Adam, AdamW, NAdam and RAdam keep the moments that they would have under
            all-reduce, nearly: ``exp_avg`` travels with the parameters, which doubles the bytes, and ``exp_avg_sq``
            is corrected for this rank's own noise. None or "plain": parameters alone travel.
        wire_dtype: round wider values to this dtype on the wire, such as ``torch.bfloat16``, or to ``"int8"``: see
            :class:`~pushsum_opt.PushSum`. None: send as it is.
        nonfinite: "raise" when a message holds inf or nan, or "skip" that part of it.
        comm: an mpi4py communicator, a process group of torch.distributed, or what :func:`pushsum_opt.testing.run`
            gives; None for all ranks.
        timeout: seconds without progress after which waiting for a peer is an error.
        rate_correction: with ``staleness="unbounded"``, scale local steps by this rank's step time over the mean, so
            that slow ranks count as much as fast ones.
        on_loss: what happens when ranks die. "stop": the others stop with an error. "continue": they go on without
            them, as fewer ranks; it needs an MPI that can, such as that of ``pushsum run --survive``.

    Raises:
        TypeError: ``optimizer`` is no torch optimizer, or ``model`` no module.
        ConfigurationError: an argument has a value that cannot be used, or not in this version.
        MismatchError: the ranks disagree about what they exchange.
        LaunchError: the processes were not started as one job.

    >>> import torch, pushsum_opt as ps
    >>> def train(comm):
    ...     model = torch.nn.Linear(2, 1)
    ...     optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)
    ...     for _ in range(3):
    ...         loss = (model(torch.full((4, 2), 1.0 + comm.rank)) - 1.0).square().mean()
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()
    ...     optimizer.close()
    ...     return optimizer.round
    >>> ps.testing.run(2, train)
    [3, 3]
    """

    push_sum: PushSum
    """What exchanges, and what is known of it."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module | None = None,
        *,
        graph: GraphLike | None = None,
        staleness: Staleness = 0,
        within_host: WithinHost | None = None,
        gossip_every: int = 1,
        algorithm: Algorithm | None = None,
        data_weight: float = 1.0,
        buffers: Buffers | None = None,
        gossip_state: Sequence[str] = (),
        adaptive: Adaptive | None = None,
        wire_dtype: DType | None = None,
        nonfinite: Nonfinite = "raise",
        comm: Communicator | None = None,
        timeout: float = 1800.0,
        rate_correction: bool = False,
        on_loss: OnLoss = "stop",
    ) -> None:
        check_arguments(optimizer, model, within_host, gossip_every, algorithm, buffers)
        combinations.refuse(
            comm,
            model=model,
            staleness=staleness,
            within_host=within_host,
            algorithm=algorithm,
            gossip_every=gossip_every,
            buffers=buffers,
            on_loss=on_loss,
            gossip_state=points.check_names(gossip_state),
        )
        self.model = model
        self._parts = parts = Parts(optimizer, model, buffers, gossip_state, adaptive)
        _torch_compat.make_hook_tables(self)
        self._algorithm = Gossip() if algorithm is None else algorithm
        self._gossip_every = gossip_every if self._algorithm.local_steps is None else self._algorithm.local_steps
        self._steps = 0
        self._within_host = within_host
        self._joining: Join | None = None
        self.companions: list[Any] = []
        """What must live as long as this does, such as a Saver."""
        # Ranks with different within_host then make calls of different names, and the error shows both.
        construction = CONSTRUCTION if within_host is None else f"PushSumOptimizer(within_host={within_host!r})"

        def begin() -> None:
            with calling(construction):
                host = None
                if within_host is not None:
                    host = beginning.make_hosts(within_host, comm, data_weight, timeout, on_loss)
                self.push_sum = PushSum(
                    parts.tensors.exchanged,
                    graph=self._algorithm.default_graph() if graph is None else graph,
                    staleness=staleness,
                    data_weight=data_weight if host is None else host.data_weight,
                    wire_dtype=wire_dtype,
                    nonfinite=nonfinite,
                    comm=comm if host is None else host.gossip_comm,
                    timeout=timeout,
                    rate_correction=rate_correction,
                    on_loss=on_loss,
                    host=host,
                    wrapper=beginning.wrapper_options(self, parts, self._algorithm, gossip_every, within_host),
                )
                self._host_gradients = (
                    HostGradients(self.push_sum, parts.tensors) if within_host == "gradients" else None
                )
            with self.push_sum.member.lifetime.failing_together(), calling(construction):
                beginning.start_alike(parts, self.push_sum, self._algorithm)
                beginning.announce(parts, self.push_sum, within_host, self._gossip_every)

        beginning.survive(begin, comm, on_loss, timeout)
        if self.push_sum.member.place.speaks:
            beginning.warn_about_set_up(parts, self.push_sum.participants, within_host)
        # Nothing here may hold this wrapper: it is to be known as soon as the user has dropped it.
        self._watch = Watch(optimizer, parts.tensors, self.push_sum, self._host_gradients)
        self._local = LocalStep(parts, self.push_sum, self._watch, self._host_gradients)
        beginning.watch_first_step(self.push_sum)
        if (folder := settings.read().metrics) is not None:
            Metrics(self, jsonl=folder)

    # ------------------------------------------------------------------ the algorithm

    def step(self, closure: Callable[[], Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """One iteration of Stochastic Gradient Push (Assran et al. 2019, Algorithm 1).

        Args:
            closure: passed on to the wrapped optimizer, once.
            args, kwargs: whatever else its ``step`` takes.

        Returns:
            What the wrapped optimizer returned: the closure's loss, or None.

        Raises:
            PeerError: a peer did not take part; see :meth:`PushSum.mix` for this and other errors of the round.
            LayoutError: the model no longer holds the parameters that are optimized; or the wrapped optimizer has got
                new ones, not the same on every rank.
        """
        loss = self._local_step(closure, args, kwargs)  # z <- z - gamma u(z) / w, on this rank alone
        if self._host_gradients is not None:
            self._host_gradients.forget()
        self._steps += 1
        if self._steps % self._gossip_every == 0:
            self._gossip_round()  # give shares away, merge what arrived, z = x / w
        else:
            rounds.reassemble_between(self.push_sum.member)
        return loss

    def gossip(self) -> None:
        """A round without an update: for a step that this rank leaves out. Every rank gossips equally often.

        Ranks of a host leave out the same steps.
        """
        self._local.look_at_parameters()
        if self._host_gradients is not None:
            self._host_gradients.average_now("gossip()")
        self._gossip_round("gossip()")

    def synchronize(self) -> None:
        """Collective over a host. With ``within_host="gradients"``: average now what backward() has not averaged.

        For gradients that were made inside :meth:`no_sync`, or by hand: call it before they are clipped. The next
        :meth:`step` does not average them again. Otherwise there is nothing to do, and nothing is done.
        """
        if self._host_gradients is not None:
            self._host_gradients.average_now("synchronize()")

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, backward() does not average gradients over the ranks of the host, as ``within_host`` makes it do.

        For accumulation: put all backward() calls but the last one of a step inside; the last one averages the sum.
        """
        if self._host_gradients is not None:
            inside: AbstractContextManager[None] = self._host_gradients.no_sync()
        elif isinstance(self.model, nn.parallel.DistributedDataParallel):
            inside = self.model.no_sync()
        else:
            inside = nullcontext()
        with inside:
            yield

    def _local_step(self, closure: Callable[[], Any] | None, args: Any = (), kwargs: Any = None) -> Any:
        scale = 1.0 if self._joining is None else self._joining.scale
        return self._local.make(self, scale, closure, args, kwargs or {})

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _gossip_round(self, call: str = "step()") -> None:
        with calling(call):
            if self._joining is not None:
                self._joining.round_begins()
            self._plain_round()

    def _plain_round(self) -> None:
        if self._parts.corrected is not None:
            self._parts.corrected.ageing.round_begins(self.push_sum.round)
        self._algorithm.round(self.push_sum, self.param_groups)

    # For a GradScaler: call step() always, see wrapped/precision.py.
    _step_supports_amp_scaling = True

    # ------------------------------------------------------------------ what a torch optimizer has

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The wrapped optimizer. Another one may take its place: what that one steps is exchanged from then on."""
        return self._parts.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._parts.follow(optimizer)
        self._watch.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the wrapped optimizer."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = value

    @property
    def state(self) -> Any:
        """That of the wrapped optimizer."""
        return self.optimizer.state

    @state.setter
    def state(self, value: Any) -> None:
        self.optimizer.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """Those of the wrapped optimizer."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.optimizer.defaults = value

    # Frameworks look at its signature: it takes set_to_none, as torch's does.
    @functools.wraps(torch.optim.Optimizer.zero_grad, assigned=(), updated=())
    def zero_grad(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Reset the gradients, as the wrapped optimizer does."""
        call_zero_grad(self.optimizer, args, kwargs)
        if self._host_gradients is not None:
            self._host_gradients.forget()

    def add_param_group(self, param_group: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Collective. Add a group to the wrapped optimizer; rank 0's values of the new tensors reach every rank.

        All ranks call it after the same number of rounds.

        Raises:
            MismatchError: the ranks add different tensors; none of them is exchanged.
            CallOrderError: inside ``averaged()`` or ``join()``; nothing is added.
        """
        self.push_sum.member.lifetime.refuse_if_on_loan("add_param_group()")  # before the wrapped optimizer has it
        self.push_sum.member.lifetime.refuse_out_of_step("add_param_group()")
        self.optimizer.add_param_group(param_group, *args, **kwargs)
        self._watch.add("add_param_group()")

    @property
    def train(self) -> Any:
        """``train()`` of the wrapped optimizer, where it has one: ``hasattr`` says so."""
        return getattr(self.optimizer, "train")  # noqa: B009  (a torch optimizer has none)

    @property
    def eval(self) -> Any:
        """``eval()`` of the wrapped optimizer, where it has one: ``hasattr`` says so."""
        return getattr(self.optimizer, "eval")  # noqa: B009

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state and, under "push_sum", this rank's mass. Local, without side effects.

        It loads into the plain optimizer too. With ``staleness`` >= 1 it holds copies of the messages that have come
        and are not due.
        """
        _torch_compat.run_state_dict_pre_hooks(self)
        own = {"steps": self._steps, "algorithm": self._algorithm.state_dict()}
        found = state.state_of_both(self._parts, self.push_sum, own)
        return _torch_compat.run_state_dict_post_hooks(self, found)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, here or on a plain optimizer. Local; do it on every rank.

        The mass starts again at w = a_i on every rank, so that it sums to n even where every rank loads rank 0's file.
        A warning says so where something is lost by that. Nothing is lost where this rank's own state had w = a_i and
        nothing in flight (synchronous, on a graph whose shares sum to 1 on both sides): then the run goes on bit for
        bit. :func:`pushsum_opt.checkpoint.load` is collective, and continues every run exactly.

        Raises:
            CheckpointError: a newer release saved the state, in a format that this one does not know; nothing is
                loaded.
        """
        state_dict = _torch_compat.run_load_state_dict_pre_hooks(self, dict(state_dict))
        saved = state_dict.pop(state.KEY, None)
        state.load_both(self._parts, self.push_sum, state_dict, saved)
        self._steps = 0 if saved is None else saved.get("steps", 0)
        self._algorithm.load_state_dict({} if saved is None else saved.get("algorithm", {}))
        self._local.adopt_points()
        _torch_compat.run_load_state_dict_post_hooks(self)

    def __repr__(self) -> str:
        return f"PushSumOptimizer({self.optimizer!r}, graph={self.push_sum.graph!r}, staleness={self.staleness!r})"

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "a PushSumOptimizer holds communicators and cannot be pickled or copied: save optimizer.state_dict() and "
            "wrap a new optimizer"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self.__getstate__()

    # ------------------------------------------------------------------ what push-sum adds

    @property
    def push_weight(self) -> float:
        """w, this rank's push weight, > 0; the sum over ranks is n, mass in flight included."""
        return self.push_sum.push_weight

    @property
    def round(self) -> int:
        """k, the number of gossip rounds completed."""
        return self.push_sum.round

    @property
    def staleness(self) -> int | str:
        """Rounds between posting a message and merging it."""
        return self.push_sum.staleness

    @property
    def buffers(self) -> str:
        """What happens to floating buffers: "local", "average" or "gossip"."""
        return self._parts.buffers

    @property
    def points(self) -> list[str]:
        """Names of the exchanged tensors that are optimizer state, as ``gossip_state`` asks for, and no parameters."""
        return self._parts.points.among(self.push_sum.memory.tensors)

    def stats(self) -> dict[str, float]:
        """Return plain floats to log; local and cheap. See :meth:`PushSum.stats`."""
        return self.push_sum.stats()

    def report(self, **values: Any) -> None:
        """Report numbers of this rank, such as ``report(loss=loss)``, for :meth:`means`. Local.

        See :meth:`PushSum.report`.
        """
        self.push_sum.report(**values)

    def means(self) -> dict[str, float]:
        """Return the mean over ranks of what each has reported, by name; local, no rank waits. See
        :meth:`PushSum.means`.
        """
        return self.push_sum.means()

    def averaged(self) -> AbstractContextManager[None]:
        """Collective. A context in which the model holds the exact weighted average over ranks.

        Parameters are averaged, and floating buffers unless ``buffers="local"``. Afterwards the model has its own
        tensor objects and values again, bit for bit: assignments, moves and conversions that were made inside are
        undone. An optimizer with ``train()`` and ``eval()`` may be switched inside; its mode is restored, too. Nothing
        in flight is merged: training goes on as if this had not been called.
        """
        return self._average() if self.model is None else watched(self.model, self._average(), self.push_sum.rank)

    @contextmanager
    def _average(self) -> Iterator[None]:
        self._local.look_at_parameters()
        self._local.adopt_points()
        parts, with_buffers = self._parts, self.buffers != "local"
        beside = parts.tensors.averaged_buffers if with_buffers else None
        average = points.averaged(parts.optimizer, self.push_sum, beside, parts.points)
        with average, put_back(self.model, buffers=with_buffers):
            yield

    def averaged_state_dict(self, rank: int | None = 0) -> dict[str, Any] | None:
        """Collective. Return copies, on the CPU, of the model's state_dict as it is inside :meth:`averaged`.

        For saving: unlike a state_dict taken inside the block, it stays what it is. The trajectory is not changed.

        Args:
            rank: the one that gets it; the others get None. None: every rank gets it.

        Returns:
            What ``model.load_state_dict()`` takes; of an optimizer without a model, its parameters by name.
        """
        push_sum = self.push_sum
        check_rank(rank, push_sum.rank, push_sum.size)
        with self._average():
            held = self._parts.tensors.named_parameters if self.model is None else self.model.state_dict()
            return copy_to_host(held, wanted=rank is None or rank == push_sum.rank)

    @contextmanager
    def join(self, *, divide_by_active: bool = False) -> Iterator[None]:
        """Collective. A block in which ranks may take different numbers of steps: for shards of different lengths.

        A rank that leaves it goes on gossiping, without updates, until every rank has left. No other collective call
        may be made inside.

        Args:
            divide_by_active: False: each sample counts the learning rate over n, however many ranks still have batches.
                True: the learning rate over their number, as counted up to 16 rounds before; not with
                ``staleness="unbounded"``.

        Raises:
            ConfigurationError: an argument that cannot be used in this mode.
        """
        combinations.refuse(self.push_sum.comm, join=True, within_host=self._within_host)
        with Join(self.push_sum, self._plain_round, divide_by_active=divide_by_active) as joining:
            self._joining = joining
            try:
                yield
            finally:
                self._joining = None
                self._steps = 0  # rounds follow after as many steps on every rank again

    @property
    def rank(self) -> int:
        """This rank, 0 <= rank < size: its place among :attr:`members`. It is a new one after ranks were lost."""
        return self.push_sum.rank

    @property
    def size(self) -> int:
        """The number of ranks that take part."""
        return self.push_sum.size

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks that take part, by their numbers when the job was started. A spare has that of the rank whose place
        it has taken.
        """
        return self.push_sum.members

    @property
    def losses(self) -> list[Loss]:
        """What was lost so far, oldest first: one :class:`~pushsum_opt.Loss` for each recovery."""
        return self.push_sum.losses

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call a function whenever other ranks take part than before, once this rank can go on: to give a sampler its
        new shape, say. Ranks were lost then, or spares have taken their places.
        """
        self.push_sum.on_change(callback)

    def drain(self) -> None:
        """Collective. Wait for and merge every message in flight."""
        self.push_sum.drain()

    def close(self) -> None:
        """Collective. Merge what is in flight, wait for all ranks, and free what is held. Idempotent."""
        self.push_sum.close()

    def __enter__(self) -> PushSumOptimizer:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.push_sum.__exit__(*exc)
