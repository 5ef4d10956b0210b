"""PushSumOptimizer: the contract of a torch optimizer around an optimizer and a push-sum, and nothing else."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from . import _torch_compat, combinations, ending, world
from .algorithms import Algorithm, Gossip
from .algorithms.join import Join
from .arguments import Adaptive, Buffers, Communicator, DType, GraphLike, Nonfinite, Staleness, WithinHost
from .errors import ConfigurationError, LayoutError
from .hosts import Hosts, Participant
from .log import log
from .push_sum import PushSum
from .start import line as start_line
from .transport import calling
from .wrapped import adaptive as adam
from .wrapped import points
from .wrapped.calls import call_step, call_zero_grad
from .wrapped.finding import Finder
from .wrapped.host_gradients import HostGradients
from .wrapped.loading_state import load_state
from .wrapped.model_state import check_rank, copy_to_host, watched
from .wrapped.order import another_order
from .wrapped.precision import amp_scaling
from .wrapped.putting_back import put_back
from .wrapped.rates import scale_with_rates, scaled_rates
from .wrapped.start import copy_start
from .wrapped.tensors import Tensors
from .wrapped.watching import Watch

__all__ = ["PushSumOptimizer"]

KEY = "push_sum"
NAME = "PushSumOptimizer(...)"


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
            during forward and backward. "unbounded": merge whatever has come, and wait for nobody.
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
        wire_dtype: round wider values to this dtype on the wire, such as ``torch.bfloat16``. None: send as it is.
        nonfinite: "raise" when a message holds inf or nan, or "skip" that part of it.
        comm: an mpi4py communicator, or what :func:`pushsum_opt.testing.run` gives; None for ``MPI.COMM_WORLD``.
        timeout: seconds without progress after which waiting for a peer is an error.
        rate_correction: with ``staleness="unbounded"``, scale local steps by this rank's step time over the mean, so
            that slow ranks count as much as fast ones.

    Raises:
        TypeError: ``optimizer`` is no torch optimizer, or ``model`` no module.
        ConfigurationError: an argument has a value that cannot be used, or not in this version.
        MismatchError: the ranks disagree about what they exchange.
        LaunchError: the processes were not started as one MPI job.

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
    ) -> None:
        _check_arguments(optimizer, model, within_host, gossip_every, algorithm, buffers)
        combinations.refuse(
            comm,
            model=model,
            staleness=staleness,
            within_host=within_host,
            algorithm=algorithm,
            buffers=buffers,
            gossip_state=points.check_names(gossip_state),
        )
        self._inner = optimizer
        self.model = model
        _torch_compat.make_hook_tables(self)
        self._buffers = buffers or ("local" if model is None else "average")
        names = points.check_names(gossip_state)
        correct = adam.check(adaptive, optimizer, names)
        self._points = points.Points(optimizer, names, adam.moments_of(correct))
        self._corrected = adam.Corrected(optimizer, self._points) if correct else None
        self._tensors = Tensors(optimizer, model, with_buffers=self._buffers == "gossip", points=self._points)
        self._finder: Finder | None = None
        self._gossip_every = gossip_every
        self._steps = 0
        self._joining: Join | None = None
        self.companions: list[Any] = []
        """What must live as long as this does, such as a Saver."""
        self._algorithm = Gossip() if algorithm is None else algorithm
        host: Participant | None = None
        # Ranks with different ones begin by different calls, and so see what is different.
        name = NAME if within_host is None else f"PushSumOptimizer(within_host={within_host!r})"
        if within_host is not None:
            with calling(name):
                host = hosts = _make_hosts(within_host, comm, data_weight, timeout)
            comm, data_weight = hosts.gossip_comm, hosts.data_weight
        self._within_host = within_host
        with calling(name):
            self.push_sum = PushSum(
                self._tensors.exchanged,
                graph=graph,
                staleness=staleness,
                data_weight=data_weight,
                wire_dtype=wire_dtype,
                nonfinite=nonfinite,
                comm=comm,
                timeout=timeout,
                rate_correction=rate_correction,
                host=host,
                owner=self,
                by_element=self._tensors.exchanged_buffers,
                alike=self._alike(),
                leave_out=self._tensors.leave_out_together if self._buffers == "gossip" else None,
            )
            self._host_gradients: HostGradients | None = None
            if within_host == "gradients":
                self._host_gradients = HostGradients(self.push_sum, self._tensors)
                self.push_sum.before_close(self._host_gradients.close)
        with self.push_sum.failing_together(), calling(name):
            self._start_alike()
            found = start_line.hosts(self.push_sum.channel, torch.get_num_threads(), self.push_sum.host.lanes)
        if self.push_sum.first:
            moments = None if self._corrected is None else self._corrected.nbytes()
            log.info("%s", start_line.compose(self.push_sum, found, has_model=model is not None, moments=moments))
            self._warn_about_set_up()
            crowd = start_line.crowded_links(self.push_sum, found) if within_host is None else None
            if crowd is not None:
                log.warning("%s", crowd)
            if self._tensors.left_out:
                named = "; ".join(f"{name} {why}" for name, why in self._tensors.left_out.items())
                log.info("buffers that stay on each rank, and are not mixed: %s", named)
        # Nothing here may hold this wrapper: it is to be known as soon as the user has dropped it.
        taken_in = (lambda: None) if self._host_gradients is None else self._host_gradients.look_again
        self._watch = Watch(optimizer, self._tensors, self.push_sum, taken_in)
        if self.push_sum.participants > 1:
            # Every rank signs its first step; rank 0 speaks for all.
            speak = partial(_warn_about_shards, self.push_sum.rank) if self.push_sum.first else (lambda peer: None)
            self.push_sum.watch_first_step(speak)  # it must not hold this wrapper: the push-sum outlives it
            if self.push_sum.first:
                self._finder = Finder(self._tensors.named_parameters, self._points.names)

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
            self.push_sum.put_together()
        return loss

    def gossip(self) -> None:
        """A round without an update: for a step that this rank leaves out. Every rank gossips equally often.

        Ranks of a host leave out the same steps.
        """
        self._watch_parameters()
        if self._host_gradients is not None:
            self._host_gradients.settle("gossip()")
        self._gossip_round("gossip()")

    def synchronize(self) -> None:
        """Collective over a host. With ``within_host="gradients"``: average now what backward() has not averaged.

        For gradients that were made inside :meth:`no_sync`, or by hand: call it before they are clipped. The next
        :meth:`step` does not average them again. Otherwise there is nothing to do, and nothing is done.
        """
        if self._host_gradients is not None:
            self._host_gradients.settle("synchronize()")

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
        self._watch_parameters()
        self._refuse_lost_parameters()
        inside = self._host_gradients
        settle = inside.settle if inside is not None and not callable(closure) else None
        if self._points.names:
            self._adopt_points()
        with self._scaled_step(), self.push_sum.stepping():
            corrects = self._corrected is not None and self._corrected.active
            with amp_scaling(self, self.optimizer, settle, by_hand=corrects) as skip:
                if callable(closure) and inside is not None:
                    closure = inside.closure(closure)
                loss = None if skip else self._update(closure, args, kwargs or {})
            if self._points.names:
                self._adopt_points()
        if self._finder is not None:
            self._look_for_points()
        return loss

    def _update(self, closure: Callable[[], Any] | None, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._corrected is None:
            return call_step(self.optimizer, closure, args, kwargs)
        return self._corrected.step(closure, args, kwargs, self.push_sum.step_factor(self._scale()))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _watch_parameters(self) -> None:
        self._watch.look()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _adopt_points(self) -> None:
        if not self._points.names:
            return
        with self.push_sum.failing_together():
            self._points.adopt()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _look_for_points(self) -> None:
        if self._finder is not None and self._finder.step_taken(self.optimizer):
            if self._finder.found:
                log.warning("%s", self._finder.advice())
            self._finder = None

    def _scaled_step(self) -> AbstractContextManager[None]:
        """Return a context in which a step moves x by a_i dz, as in the paper."""
        factor = self.push_sum.step_factor(self._scale())
        if factor == 1.0:
            return nullcontext()
        if not self._points.points and scale_with_rates(self.optimizer):  # a rate may move points in another way
            return scaled_rates(self.optimizer, factor)
        scaled = self.push_sum.local_step(self._scale())
        return scaled if self._corrected is None else self._corrected.keeping_moments(scaled)

    def _scale(self) -> float:
        return 1.0 if self._joining is None else self._joining.scale

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _gossip_round(self, call: str = "step()") -> None:
        with calling(call):
            if self._joining is not None:
                self._joining.round_begins()
            self._plain_round()

    def _plain_round(self) -> None:
        if self._corrected is not None:
            self._corrected.ageing.round_begins(self.push_sum.round)
        self._algorithm.round(self.push_sum, self.param_groups)

    # For a GradScaler: call step() always, see wrapped/precision.py.
    _step_supports_amp_scaling = True

    # ------------------------------------------------------------------ what a torch optimizer has

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The wrapped optimizer. Another one may take its place: what that one steps is exchanged from then on."""
        return self._inner

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        _check_wrappable(optimizer)
        if self._corrected is not None:
            adam.check("corrected", optimizer, self._points.points)
            self._corrected.follow(optimizer)
        self._inner = optimizer
        for part in (self._tensors, self._points, self._watch):
            part.optimizer = optimizer

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
        self.push_sum.refuse_if_on_loan("add_param_group()")  # before the wrapped optimizer has it
        self.push_sum.refuse_out_of_step("add_param_group()")
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
        own: dict[str, Any] = {"steps": self._steps, "algorithm": self._algorithm.state_dict()}
        if self._corrected is not None:
            own["moments"] = self._corrected.ageing.state()
        inner = self.optimizer.state_dict()
        if not isinstance(inner, Mapping):
            raise TypeError(
                f"rank {self.push_sum.rank}: {type(self.optimizer).__name__}.state_dict() returned a "
                f"{type(inner).__name__}: expected a dict, as torch.optim.Optimizer returns. Let it return one, such "
                "as {'optimizers': ...}, and let load_state_dict() take it"
            )
        state = {**inner, KEY: {**self.push_sum.state(), **own}}
        return _torch_compat.run_state_dict_post_hooks(self, state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, here or on a plain optimizer. Local; do it on every rank.

        The mass starts anew at w = a_i on every rank, so that it sums to n even where every rank loads rank 0's file;
        a warning says so where anything is lost by that. Nothing is where this rank's own state had w = a_i and nothing
        in flight (synchronous, on a graph whose shares sum to 1 on both sides): then the run goes on bit for bit.
        :func:`pushsum_opt.checkpoint.load` is collective, and continues every run exactly.
        """
        state_dict = _torch_compat.run_load_state_dict_pre_hooks(self, dict(state_dict))
        mass = state_dict.pop(KEY, None)
        load_state(self.optimizer, state_dict)
        self._steps = 0 if mass is None else mass.get("steps", 0)
        self._algorithm.load_state_dict({} if mass is None else mass.get("algorithm", {}))
        if self._corrected is not None:
            self._corrected.ageing.load_state({} if mass is None else mass.get("moments", {}))
        reason = self.push_sum.load_state(mass)
        self._adopt_points()
        if reason is not None:
            log.warning(
                "rank %d: the optimizer's state was loaded, but %s: this rank starts with push weight %.6g. Fine if "
                "every rank loads the same model; to continue a run exactly, use pushsum_opt.checkpoint.save and load",
                self.push_sum.rank,
                reason,
                self.push_sum.push_weight,
            )
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
        return self._buffers

    @property
    def points(self) -> list[str]:
        """Names of the exchanged tensors that are optimizer state, as ``gossip_state`` asks for, and no parameters."""
        return self._points.among(self.push_sum.memory.tensors)

    def stats(self) -> dict[str, float]:
        """Return plain floats to log; local and cheap. See :meth:`PushSum.stats`."""
        return self.push_sum.stats()

    def averaged(self) -> AbstractContextManager[None]:
        """Collective. A context in which the model holds the exact weighted average over ranks.

        Parameters are averaged, and floating buffers unless ``buffers="local"``; afterwards they hold, bit for bit,
        what they held, in the tensor objects that they were: what is assigned anew inside is put back, as are moves and
        conversions of the model. An optimizer with ``train()`` and ``eval()`` may be switched inside; its mode is put
        back.
        Nothing in flight is merged: training goes on as if it had not been called.
        """
        return self._average() if self.model is None else watched(self.model, self._average(), self.push_sum.rank)

    @contextmanager
    def _average(self) -> Iterator[None]:
        self._watch_parameters()
        self._adopt_points()
        beside = None if self._buffers == "local" else self._tensors.averaged_buffers
        average = points.averaged(self.optimizer, self.push_sum, beside, self._points)
        with average, put_back(self.model, buffers=self._buffers != "local"):
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
            held = self._tensors.named_parameters if self.model is None else self.model.state_dict()
            return copy_to_host(held, wanted=rank is None or rank == push_sum.rank)

    @contextmanager
    def join(self, *, divide_by_active: bool = False) -> Iterator[None]:
        """Collective. A block in which ranks may take different numbers of steps: for shards of different lengths.

        A rank that leaves it goes on gossiping, without updates, until every rank has left. No other collective call
        may be made inside.

        Args:
            divide_by_active: False: each sample counts gamma / n, however many ranks still have batches. True: gamma
                over their number, as counted up to 16 rounds before; not with ``staleness="unbounded"``.

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

    def drain(self) -> None:
        """Collective. Wait for and merge every message in flight."""
        self.push_sum.drain()

    def close(self) -> None:
        """Collective. Bring every message home, wait for all ranks, free what is held. Idempotent."""
        self.push_sum.close()

    def __enter__(self) -> PushSumOptimizer:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.push_sum.__exit__(*exc)

    # ------------------------------------------------------------------ the start

    def _alike(self) -> dict[str, str]:
        """Return the arguments that must be equal on all ranks: where they are not, tensors differ as well."""
        return {
            "gossip_every": str(self._gossip_every),
            "algorithm": repr(self._algorithm),
            "buffers": repr(self._buffers),
            "within_host": repr(self._within_host),
            "gossip_state": repr(self._points.points),
            "adaptive": repr("plain" if self._corrected is None else "corrected"),
            **self._tensors.roles,
        }

    @torch.inference_mode(False)  # the state that is made here is written to by steps outside of it
    def _start_alike(self) -> None:
        """Rank 0's parameters, buffers and optimizer state reach every rank that differs."""
        # First inside every host, then between hosts: rank 0's values reach all.
        for channel in (*self.push_sum.host.replicas, self.push_sum.channel):
            order = another_order(channel, self._tensors.named_parameters)
            if order is not None and channel.rank == 0:
                log.warning("%s", order)
            copy_start(channel, self.optimizer, self._tensors.all)
        self._points.adopt()
        if self._corrected is not None:
            self._corrected.bind(self.push_sum)
        self._algorithm.bind(self.push_sum, self.param_groups)
        self._algorithm.bound = True

    def _warn_about_set_up(self) -> None:
        size = self.push_sum.participants
        if size == 1:
            return
        if isinstance(self.optimizer, torch.optim.LBFGS):
            warnings.warn(
                f"LBFGS on {size} ranks: its curvature pairs see the gossip between steps, which is not the change "
                "that its gradients explain; prefer a first-order optimizer",
                stacklevel=3,
            )
        parallel = isinstance(self.model, nn.parallel.DistributedDataParallel) and self._within_host is None
        if parallel and torch.distributed.get_world_size() == size:
            warnings.warn(
                f"the model is wrapped in DistributedDataParallel over the same {size} ranks: gradients are averaged "
                "by all-reduce and parameters again by gossip. Use one of the two",
                stacklevel=3,
            )

    def _refuse_lost_parameters(self) -> None:
        lost = self._tensors.lost()
        if lost:
            with self.push_sum.failing_together():
                raise LayoutError(
                    f"rank {self.push_sum.rank}, round {self.round}: the model no longer holds the parameters that are "
                    f"optimized: {', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''}. They were replaced, as "
                    "load_state_dict(assign=True) does; training would change tensors that nobody uses. Load with "
                    "assign=False, or make the optimizer and wrap it afterwards"
                )


def _warn_about_shards(rank: int, peer: int) -> None:
    log.warning(
        "rank %d: its first local step and rank %d's are equal, bit for bit: both train on the same data. Give each "
        "rank its own shard: DistributedSampler(dataset, num_replicas=ps.size(), rank=ps.rank())",
        rank,
        peer,
    )


def _make_hosts(within_host: str, comm: Any, data_weight: float, timeout: float) -> Hosts:
    """Collective. Return this rank's host and lane."""
    comm = world.communicator(comm)
    ending.stop_all_on_error()
    return Hosts(comm, data_weight=data_weight, sharded=within_host == "fsdp", timeout=timeout)


def _check_wrappable(optimizer: Any) -> None:
    if isinstance(optimizer, PushSumOptimizer):
        raise TypeError("optimizer is wrapped already: expected the torch optimizer inside, optimizer.optimizer")
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, got {kind}. If it wraps an optimizer, make its class a "
            "subclass of torch.optim.Optimizer"
        )


def _check_arguments(
    optimizer: Any, model: Any, within_host: Any, gossip_every: Any, algorithm: Any, buffers: Any
) -> None:
    _check_wrappable(optimizer)
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module or None, got {type(model).__name__}")
    if within_host not in (None, "gradients", "ddp", "fsdp"):
        raise ConfigurationError(f"within_host={within_host!r}: expected 'gradients', 'ddp', 'fsdp' or None")
    if isinstance(gossip_every, bool) or not isinstance(gossip_every, int) or gossip_every < 1:
        raise ConfigurationError(f"gossip_every={gossip_every!r}: expected an int of at least 1")
    if algorithm is not None and not isinstance(algorithm, Algorithm):
        raise ConfigurationError(f"algorithm={algorithm!r}: expected one of pushsum_opt.algorithms, or None")
    if algorithm is not None and algorithm.bound:
        raise ConfigurationError(f"algorithm={algorithm!r} belongs to another optimizer: make a new one for each")
    if buffers not in (None, "local", "average", "gossip"):
        raise ConfigurationError(f"buffers={buffers!r}: expected 'local', 'average', 'gossip' or None")
