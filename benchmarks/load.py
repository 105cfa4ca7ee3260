"""Clients of a server, for locust: each asks, reads its answer as it streams, and asks again.

Run by `benchmarks.serve`, which tells how by the environment. What is measured goes into locust's statistics as
requests of two names: FIRST (to the first text) and ANSWER (to the end; its length is the answer's tokens).
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any

from locust import HttpUser, task

from benchmarks.serve import ANSWER, FIRST, LEFT, REFUSED, ROUGH, TOKENS

THINGS = ("river", "bread", "bridge", "engine", "forest", "letter", "market", "mirror", "window", "garden", "island")


class Talker(HttpUser):
    """A person at work: a system prompt that all share, a question of their own, then a second one on the answer."""

    @task
    def talk(self) -> None:
        messages = [{"role": "system", "content": "You are a helpful assistant. Answer in a few plain sentences."}]
        for question in (
            f"Tell me about a {random.choice(THINGS)} of {random.randrange(1000)} years.",
            "And before?",
        ):
            messages.append({"role": "user", "content": question})
            if os.environ.get(ROUGH) and random.random() < 0.3:
                self.be_rough(messages)
            messages.append({"role": "assistant", "content": self.ask(messages)})

    def ask(self, messages: list[dict[str, str]], leave_after: int | None = None) -> str:
        """The answer; with `leave_after` it is not read to its end."""
        body: dict[str, Any] = {
            "messages": messages,
            "max_tokens": int(os.environ[TOKENS]),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began, first, texts, tokens = time.perf_counter(), None, list[str](), 0
        problem = None
        try:
            with self.client.post(
                "/v1/chat/completions", json=body, stream=True, catch_response=True, name=""
            ) as got:
                got.raise_for_status()
                for line in got.iter_lines():
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(event["error"]["message"])
                    if event["choices"] and (text := event["choices"][0]["delta"].get("content")):
                        texts.append(text)
                        first = first or time.perf_counter()
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    if leave_after is not None and len(texts) >= leave_after:
                        break
        except Exception as raised:
            problem = raised
        if leave_after is None:
            self._note(FIRST, (first or time.perf_counter()) - began, 0, problem)
        self._note(ANSWER if leave_after is None else LEFT, time.perf_counter() - began, tokens, problem)
        return "".join(texts)

    def be_rough(self, messages: list[dict[str, str]]) -> None:
        """What a server must stand: clients that leave, and bodies that are none."""
        if random.random() < 0.5:
            self.ask(messages, leave_after=random.randrange(3))
            return
        data = random.choice([b"{", b'{"messages": []}', b'{"messages": [{"role": "user", "content": 1}]}'])
        headers, began = {"Content-Type": "application/json"}, time.perf_counter()
        with self.client.post(
            "/v1/chat/completions", data=data, headers=headers, catch_response=True, name=""
        ) as got:
            problem = None if got.status_code == 400 else RuntimeError(f"status {got.status_code}")
            got.success()
        self._note(REFUSED, time.perf_counter() - began, 0, problem)

    def _note(self, name: str, seconds: float, length: int, problem: Exception | None) -> None:
        self.environment.events.request.fire(
            request_type="chat",
            name=name,
            response_time=1000 * seconds,
            response_length=length,
            exception=problem,
            context={},
        )
