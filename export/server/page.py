"""The page of a server: Gradio's chat over the models, queue and conversations that the API has too."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from export.server.uploads import folder

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it asks when it is imported, too
os.environ["GRADIO_TEMP_DIR"] = str(folder())

import gradio as gr
from fastapi import FastAPI
from starlette.routing import Mount

from export.server.answering import Desk
from export.server.login import Login
from export.server.models import Models
from export.server.page_messages import Shown, messages_of, stopped
from export.server.page_turns import turn
from export.server.settings import Settings

EXAMPLES = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Write a short poem about a phone that thinks.",
)
MOST_TOKENS = 512  # of an answer, unless asked otherwise
SYSTEM_FONT, MONO_FONT = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # Gradio's come from a CDN
SECRET = "pocketphi"  # Gradio wants one for what browsers keep; one of each start would lose that with the server
CSS = """
body { background: var(--body-background-fill) !important } /* Gradio's follows the system, whatever was chosen */
.chats td, .chats button:not(.primary), .chats .table { text-align: left }
.chats { max-height: calc(100dvh - 5.5rem); overflow-y: auto }
h1 { margin: 0 3.5rem !important; font-size: 1.3rem !important; overflow-wrap: anywhere }
.sidebar:not(.open) .toggle-button::after {
  content: "Settings"; position: absolute; bottom: 100%; left: 0.3rem; font-size: 0.7rem;
  transform: rotate(180deg); /* as the button is */
}
button[aria-label="Share"] { display: none } /* at other hosts */
@media (max-width: 700px) {
  .chats { order: 2; max-height: none }
  .gradio-container main { padding: 0.5rem !important }
}
"""
# A page that was made dark or light stays so.
DARK = """() => {
  const dark = document.body.classList.toggle("dark");
  localStorage.setItem("pocketphi-dark", dark);
}"""
DARK_BEFORE = """() => {
  const kept = localStorage.getItem("pocketphi-dark");
  if (kept !== null) document.body.classList.toggle("dark", kept === "true");
}"""


def add_page(app: FastAPI, models: Models, settings: Settings) -> None:
    """Mount the page at / of a server's application, behind all paths of the API."""
    gr.mount_gradio_app(
        app,
        make_page(models, app.state.desk),
        "/",
        theme=gr.themes.Default(font=SYSTEM_FONT, font_mono=MONO_FONT),
        css=CSS,
        js=DARK_BEFORE,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=settings.max_file_bytes,
        enable_monitoring=False,
    )
    mounted = app.router.routes[-1]
    assert isinstance(mounted, Mount)
    mounted.app = Login(mounted.app, settings, bool(file_types(models)))


def make_page(models: Models, desk: Desk) -> gr.Blocks:
    """The page, which answers through a server's desk."""
    with gr.Blocks(title="Pocketphi", analytics_enabled=False, fill_height=True) as page:
        with gr.Sidebar(position="right", open=False, width=340):
            system, controls = gr.Textbox(label="System prompt", lines=3, max_lines=12), _controls(models)
            gr.Button("Light or dark", size="sm").click(None, js=DARK)
        _chat(models, desk, system, controls)
        _keep([system, *controls.values()], page)
    return page


def _controls(models: Models) -> dict[str, Any]:
    """By the field of a request that each sets."""
    context = max(model.context for model in models.values())
    names = list(models)
    return {
        "model": gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1),
        "temperature": gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0: always the likeliest token"),
        "top_k": gr.Slider(0, 200, 0, step=1, label="Top-k", info="of so many likeliest tokens; 0: of all"),
        "top_p": gr.Slider(0, 1, 1, step=0.01, label="Top-p", info="of the likeliest with so much probability"),
        "min_p": gr.Slider(0, 1, 0, step=0.01, label="Min-p", info="of those so likely as a share of the likeliest"),
        "repetition_penalty": gr.Slider(1, 2, 1, step=0.01, label="Repetition penalty", info="1: none"),
        "max_tokens": gr.Slider(1, context, min(MOST_TOKENS, context), step=1, label="Max tokens of an answer"),
        "seed": gr.Number(None, precision=0, label="Seed", placeholder="another each time"),
    }


def _chat(models: Models, desk: Desk, system: gr.Textbox, controls: dict[str, Any]) -> None:
    async def reply(
        message: str | dict[str, Any], history: list[Shown], request: gr.Request, system: str, *chosen: Any
    ) -> AsyncIterator[list[Shown]]:
        asked = {name: value for name, value in zip(controls, chosen, strict=True) if value is not None}
        client = ("page", request.client.host if request.client else None, request.session_hash)
        async with aclosing(turn(models, desk, client, messages_of(history, message, system), asked)) as answers:
            async for shown in answers:
                yield shown

    names, types = ", ".join(models), file_types(models)
    chat = gr.ChatInterface(
        reply,
        title=f"{names} · Pocketphi" if len(models) == 1 else "Pocketphi",
        chatbot=gr.Chatbot(
            show_label=False, height=f"calc(100dvh - {13 if types else 11}rem)", min_height=260, layout="bubble",
            allow_tags=False, buttons=["copy", "copy_all"], placeholder="Ask something, or begin with one of these.",
        ),
        multimodal=bool(types),
        textbox=_textbox(types),
        additional_inputs=[system, *controls.values()],
        examples=[[{"text": text} if types else text] for text in EXAMPLES],
        cache_examples=False,
        save_history=True,
        analytics_enabled=False,
        concurrency_limit=None,  # the server's own queue knows whose turn it is
        api_visibility="private",
        show_progress="hidden",
        fill_width=True,
    )  # fmt: skip
    chat.saved_conversations.storage_key, chat.saved_conversations.secret = "pocketphi-chats", SECRET
    chat.new_chat_button.icon = None  # its address would be a path of this machine's disk
    chats: Any = chat.new_chat_button.parent
    chats.elem_classes, chats.min_width = ["chats"], 180
    shown = [chat.chatbot]
    chat.textbox.stop(stopped, shown, shown, queue=False, api_visibility="private").then(
        lambda history: (history, history), shown, [chat.chatbot_state, chat.chatbot_value],
        queue=False, api_visibility="private",
    )  # fmt: skip


def file_types(models: Models) -> list[str]:
    """What can be put beside a question, where any of the models takes it."""
    taken = {kind for model in models.values() for kind in model.modalities}
    return [kind for kind in ("image", "audio") if kind in taken]


def _textbox(types: list[str]) -> gr.Textbox | gr.MultimodalTextbox:
    shared: Any = {
        "show_label": False, "lines": 1, "max_lines": 8, "scale": 7, "autofocus": True, "submit_btn": True,
        "stop_btn": True, "elem_id": "ask", "placeholder": "Ask something",
    }  # fmt: skip
    if not types:
        return gr.Textbox(**shared)
    words = {"image": "a picture", "audio": "sound"}
    shared["placeholder"] += f", with {' or '.join(words[kind] for kind in types)} or without"
    return gr.MultimodalTextbox(
        file_types=types,
        file_count="multiple",
        sources=["upload", "microphone"] if "audio" in types else ["upload"],
        max_plain_text_length=1 << 30,  # a longer paste would be a file
        **shared,
    )


def _keep(controls: list[Any], page: gr.Blocks) -> None:
    """Have a browser keep what the controls say, and say it again when the page is opened."""
    first = [control.value for control in controls]
    kept = gr.BrowserState(first, storage_key="pocketphi-settings", secret=SECRET)
    quick: Any = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    def again(values: Any) -> list[Any]:
        try:
            return [control.preprocess(value) for control, value in zip(controls, values, strict=True)]
        except Exception:  # of a server with other models, or of an older page
            return first

    page.load(again, kept, controls, **quick)
    gr.on([control.change for control in controls], lambda *values: list(values), controls, kept, **quick)
