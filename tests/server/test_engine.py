"""Answers of the batched loop are bit for bit those of ``generate``, whoever else is served."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from laguna_ref.errors import NonFiniteError
from laguna_ref.generate import generate
from laguna_ref.sampling import Sampling
from laguna_ref.server.engine import Engine
from laguna_ref.server.errors import ApiError
from laguna_ref.server.job import Job, Update
from laguna_ref.server.service import Service
from tests.server.serving import ended, service_of, wait_until

SAMPLING = Sampling(0.8, 50, 0.95)


def job(length: int, seed: int, **more: Any) -> Job:
    prompt = [int(i) for i in np.random.default_rng(length).integers(70, 3000, length)]
    values = {"sampling": SAMPLING, "max_tokens": 12, "stop_ids": frozenset({2, 24})} | more
    return Job(tuple(prompt), seed=seed, **values)


def run(engine: Engine, jobs: list[Job], timeout: float = 60) -> list[list[Update]]:
    """All updates of each job, in order, until all have ended."""
    updates: queue.Queue[tuple[int, Update]] = queue.Queue()
    engine.submit(jobs, lambda index, update: updates.put((index, update)))
    found: list[list[Update]] = [[] for _ in jobs]
    while not all(one and one[-1].last for one in found):
        index, update = updates.get(timeout=timeout)
        found[index].append(update)
    return found


def tokens_of(updates: list[Update]) -> list[int]:
    assert all(update.error is None for update in updates)
    return [update.token.id for update in updates if update.token is not None]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    limits = {"max_num_seqs": 5, "max_num_batched_tokens": 48, "max_waiting": 30}
    with ended(service_of(limits=limits)) as service:
        yield service


def alone(service: Service, one: Job) -> list[int]:
    """What ``generate`` gives, with the stop token, which it leaves out."""
    return list(
        generate(
            service.model, one.prompt, max_tokens=one.max_tokens, seed=one.seed,
            temperature=one.sampling.temperature, top_k=one.sampling.top_k,
            top_p=one.sampling.top_p, stop_ids=one.stop_ids,
        )
    )  # fmt: skip


def test_many_at_once_are_each_as_alone(service: Service) -> None:
    jobs = [job(length, seed) for seed, length in enumerate([1, 3, 200, 64, 130, 7, 77, 1, 150])]
    jobs += [jobs[2], job(200, 99)]  # the same prompt again, with the same and another seed
    found = run(service.engine, jobs)
    for one, updates in zip(jobs, found, strict=True):
        ids = tokens_of(updates)
        expected = alone(service, one)
        assert ids[: len(expected)] == expected
        finish = updates[-1].finish
        assert finish is not None
        if len(expected) < one.max_tokens:
            assert (finish.reason, ids[-1] in one.stop_ids) == ("stop", True)
        else:
            assert (finish.reason, len(ids)) == ("length", one.max_tokens)


def test_scores_and_texts_do_not_depend_on_company(service: Service) -> None:
    asked = job(90, 5, logprobs=4, prompt_logprobs=3)
    (single,) = run(service.engine, [asked])
    crowd = run(service.engine, [job(120, 1), asked, job(40, 2, trace=True), job(5, 3)])[1]
    assert single == crowd
    scores = single[0].computed.scores if single[0].computed else None
    assert scores is not None
    logits = service.model(asked.prompt)
    assert [score.token for score in scores] == list(asked.prompt[1:])
    best = [score.top[0][0] for score in scores]
    assert best == [int(row.argmax()) for row in logits[:-1]]


def test_the_second_of_two_equal_prompts_shares_the_cache_of_the_first(service: Service) -> None:
    first, second = run(service.engine, [job(170, 1), job(170, 2)])
    assert first[0].computed is not None
    assert second[0].computed is not None
    assert second[0].computed.cached_tokens == 169


def test_experts_are_those_of_the_pass_that_the_token_was_drawn_from(service: Service) -> None:
    from laguna_ref.trace import Recorder

    asked = job(20, 3, trace=True, max_tokens=3)
    (updates,) = run(service.engine, [asked])
    ids = tokens_of(updates)
    recorder = Recorder("model.layers.*.mlp.topk_ids", "model.layers.*.mlp.topk_weights")
    service.model([*asked.prompt, *ids[:-1]], trace=recorder)
    for place, update in enumerate(updates):
        assert update.token is not None
        assert update.token.experts is not None
        row = len(asked.prompt) - 1 + place
        assert set(update.token.experts) == set(range(1, 8))
        for layer, chosen in update.token.experts.items():
            at = f"model.layers.{layer}.mlp.topk"
            assert [i for i, _ in chosen] == recorder[f"{at}_ids"][row].tolist()
            assert [w for _, w in chosen] == recorder[f"{at}_weights"][row].tolist()


def test_it_ends_where_the_context_does() -> None:
    limits = {"max_model_len": 20}
    with ended(service_of(limits=limits)) as service:
        (updates,) = run(service.engine, [job(15, 1, max_tokens=50, stop_ids=frozenset())])
        assert len(tokens_of(updates)) == 6  # the last is generated, but needs no place
        assert updates[-1].finish is not None
        assert updates[-1].finish.reason == "length"


def test_no_tokens_asked_for_still_computes_the_prompt(service: Service) -> None:
    (updates,) = run(service.engine, [job(30, 1, max_tokens=0, prompt_logprobs=0)])
    assert tokens_of(updates) == []
    assert updates[-1].computed is not None
    assert len(updates[-1].computed.scores or ()) == 29


def test_a_cancelled_one_frees_its_place_and_others_go_on(service: Service) -> None:
    updates: queue.Queue[tuple[int, Update]] = queue.Queue()
    long = job(10, 1, max_tokens=4000, stop_ids=frozenset())
    sequences = service.engine.submit(
        [long] * 5 + [job(8, 4)], lambda index, update: updates.put((index, update))
    )
    index, _ = updates.get(timeout=30)
    assert index < 5
    service.engine.cancel(sequences[:5])
    seen = [updates.get(timeout=30)]
    while not (seen[-1][0] == 5 and seen[-1][1].last):
        seen.append(updates.get(timeout=30))
    assert [u.token.id for i, u in seen if i == 5 and u.token] == alone(service, job(8, 4))
    aborted = {i for i, u in seen if u.finish and u.finish.why == "cancelled"}
    assert aborted == {0, 1, 2, 3, 4}
    wait_until(lambda: service.engine.running == 0)


def test_a_forward_pass_that_fails_fails_only_who_has_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with ended(service_of()) as service:
        real = service.model.batch

        def batch(sequences: Any, **more: Any) -> Any:
            if any(999 in tokens for tokens in sequences):
                raise NonFiniteError("planted")
            return real(sequences, **more)

        monkeypatch.setattr(service.model, "batch", batch)
        good = job(9, 1)
        bad = Job((999, 70), SAMPLING, 1, 5)
        found = run(service.engine, [good, bad, job(5, 2)])
        assert isinstance(found[1][-1].error, NonFiniteError)
        assert tokens_of(found[0])[:12] == alone(service, good)
        assert service.engine.accepting


def test_a_full_queue_and_a_draining_server_refuse() -> None:
    with ended(service_of(limits={"max_num_seqs": 1, "max_waiting": 1})) as service:
        long = job(4, 1, max_tokens=3000, stop_ids=frozenset())
        updates: queue.Queue[Update] = queue.Queue()
        service.engine.submit([long] * 2, lambda _, update: updates.put(update))
        with pytest.raises(ApiError) as full:
            service.engine.submit([long], lambda *_: None)
        assert full.value.status == 429
        assert int(full.value.headers["Retry-After"]) >= 1
        with pytest.raises(ApiError) as never:
            service.engine.submit([long] * 3, lambda *_: None)
        assert never.value.status == 400
        service.engine.drain(0.2)
        with pytest.raises(ApiError) as draining:
            service.engine.submit([long], lambda *_: None)
        assert draining.value.status == 503
        service.engine.join(30)
        last = [update.finish for update in list(updates.queue) if update.last]
        assert [finish.why for finish in last if finish] == ["shutdown", "shutdown"]


def test_a_prompt_that_waits_to_share_holds_nobody_else_up(service: Service) -> None:
    engine = Engine(service.model, service.tokenizer, service.engine.limits, service.metrics)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(engine._thread, "is_alive", lambda: True)  # nobody runs it: steps by hand
    engine.submit([job(200, 1), job(200, 2), job(5, 3)], lambda *_: None)
    engine._admit()
    assert [len(one.job.prompt) for one in engine._running] == [200, 5]
    assert [one.job.seed for one in engine._waiting] == [2]
    monkey.undo()


def test_what_has_ended_holds_no_cache(service: Service) -> None:
    updates: queue.Queue[Update] = queue.Queue()
    (sequence,) = service.engine.submit([job(9, 1)], lambda _, update: updates.put(update))
    while not updates.get(timeout=60).last:
        pass
    wait_until(lambda: service.engine.running == 0)
    assert sequence._cache is None


def test_text_held_back_comes_with_the_end() -> None:
    with ended(service_of(limits={"request_timeout": 0.5})) as service:
        # Every character begins this stop text, which never comes.
        stop = tuple(chr(code) + "\x00" * 3 for code in range(1, 127))
        (updates,) = run(
            service.engine, [job(4, 1, max_tokens=8000, stop=stop, stop_ids=frozenset())]
        )
        assert updates[-1].finish is not None
        assert updates[-1].finish.why == "timeout"
        said = "".join(update.text for update in updates)
        assert said == "".join(update.token.text for update in updates if update.token)


def test_an_answer_that_takes_too_long_is_broken_off() -> None:
    with ended(service_of(limits={"request_timeout": 0.2})) as service:
        long = job(4, 1, max_tokens=8000, stop_ids=frozenset())
        (updates,) = run(service.engine, [long])
        assert updates[-1].finish is not None
        assert updates[-1].finish.why == "timeout"
