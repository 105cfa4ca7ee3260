"""What a chat is: its turns, what goes with the next one, how answers are chosen, and what the last one took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from export.engine.conversation import Choosing, Conversation, Piece, Reply
from export.engine.media_prompt import NAMES, OnEncoding
from export.media.prompt import Kind
from export.terminal.attachments import find_path, read_part


class State:
    """Turns as OpenAI has them; the system's stands apart, so that it stays when the others are forgotten."""

    def __init__(self, conversation: Conversation, name: str, system: str | None, choosing: Choosing) -> None:
        self.conversation, self.name = conversation, name
        self.system, self.choosing = system, choosing
        self.turns = list[dict[str, Any]]()
        self.attached = list[dict[str, Any]]()  # pictures and sounds of the next turn
        self.last: Reply | None = None
        self.answers = self.new_tokens = 0

    def messages(self) -> list[dict[str, Any]]:
        """All turns, the system's first."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, *self.turns]

    def attach(self, kind: Kind, typed: str) -> str:
        """Have a file go with the next turn; what to say about it. BadInput where it cannot be used."""
        path, conversation = find_path(typed), self.conversation
        part = read_part(kind, path, str(path), conversation.media, conversation.name)
        conversation.count([{"role": "user", "content": [part]}])  # too narrow, too short
        self.attached.append(part)
        number = sum(part["type"] == kind for part in [*self._parts(), *self.attached])
        return f"{NAMES[kind]} {number}, <|{kind}_{number}|>, goes with what you say next: {path.name}"

    def ask(
        self,
        text: str,
        on_piece: Callable[[Piece], object],
        on_encoding: OnEncoding = lambda done, of: None,
    ) -> Reply:
        """Answer a turn of the user, with what is attached to it; a turn that got no answer is forgotten.

        What was attached to that stays for the next. BadInput as `Conversation.reply`.
        """
        said = [{"type": "text", "text": text}] if text else []
        turn = {"role": "user", "content": [*self.attached, *said] if self.attached else text}
        reply = self.conversation.reply(
            [*self.messages(), turn], self.choosing, on_piece=on_piece, on_encoding=on_encoding
        )
        if reply.text or reply.end != "cancelled":
            self.turns += [turn, {"role": "assistant", "content": reply.text}]
            self.attached = []
        self.last = reply
        self.answers += 1
        self.new_tokens += reply.new_tokens
        return reply

    def note(self, reply: Reply) -> str:
        """What is worth saying about how an answer ended."""
        if reply.end == "length":
            return f"(cut at max_tokens {self.choosing.max_tokens})"
        if reply.end == "context":
            return f"(cut: the context of {self.conversation.context} tokens is full)"
        return "(stopped)" if reply.end == "cancelled" else ""

    def reset(self) -> None:
        """Forget the turns, and what was attached to the next."""
        self.turns, self.attached = [], []
        self.last = None
        self.conversation.reset()

    def _parts(self) -> list[dict[str, Any]]:
        """Of all turns."""
        return [part for turn in self.turns if isinstance(turn["content"], list) for part in turn["content"]]

    def status(self) -> str:
        """One line: speed of the last answer, and how full the context is."""
        used = f"context {len(self.conversation.held)} of {self.conversation.context}"
        if self.attached:
            used += f", {len(self.attached)} attached"
        return used if self.last is None else f"{speed(self.last)}, {used}"


def speed(reply: Reply) -> str:
    """Tokens per second after the first."""
    if reply.new_tokens < 2 or reply.decode_ms <= 0:
        return "too short for a speed"
    return f"{1000 * (reply.new_tokens - 1) / reply.decode_ms:,.1f} tokens/s"
