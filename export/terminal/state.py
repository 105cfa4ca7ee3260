"""What a chat is: its turns, how answers are chosen, and what the last one took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from export.engine.conversation import Choosing, Conversation, Piece, Reply


class State:
    """Turns as OpenAI has them; the system's stands apart, so that it stays when the others are forgotten."""

    def __init__(self, conversation: Conversation, name: str, system: str | None, choosing: Choosing) -> None:
        self.conversation, self.name = conversation, name
        self.system, self.choosing = system, choosing
        self.turns = list[dict[str, Any]]()
        self.last: Reply | None = None
        self.answers = self.new_tokens = 0

    def messages(self) -> list[dict[str, Any]]:
        """All turns, the system's first."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, *self.turns]

    def ask(self, text: str, on_piece: Callable[[Piece], object]) -> Reply:
        """Answer a turn of the user; a turn that got no answer is forgotten. BadInput as `Conversation.reply`."""
        turn = {"role": "user", "content": text}
        reply = self.conversation.reply([*self.messages(), turn], self.choosing, on_piece=on_piece)
        if reply.text or reply.end != "cancelled":
            self.turns += [turn, {"role": "assistant", "content": reply.text}]
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
        """Forget the turns."""
        self.turns = []
        self.last = None
        self.conversation.reset()

    def status(self) -> str:
        """One line: speed of the last answer, and how full the context is."""
        used = f"context {len(self.conversation.held)} of {self.conversation.context}"
        return used if self.last is None else f"{speed(self.last)}, {used}"


def speed(reply: Reply) -> str:
    """Tokens per second after the first."""
    if reply.new_tokens < 2 or reply.decode_ms <= 0:
        return "too short for a speed"
    return f"{1000 * (reply.new_tokens - 1) / reply.decode_ms:,.1f} tokens/s"
