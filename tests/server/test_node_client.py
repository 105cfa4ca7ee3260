"""The server by OpenAI's JavaScript client, where node and npm are."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.running import Server
from tests.tools import need

PROGRAM = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const asked = { model: "tiny", temperature: 0, messages };
const whole = await client.chat.completions.create(asked);
let streamed = "", usage = null;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...asked, ...options })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const parameters = { type: "object", properties: {}, additionalProperties: false };
const tool = { type: "function", function: { name: "get_time", parameters } };
const called = await client.chat.completions.create({ ...asked, tools: [tool], tool_choice: "required" });
const errors = [];
const keep = (error) => errors.push([error.constructor.name, error.param]);
for (const wrong of [{ model: "other" }, { temperature: "hot" }])
  await client.chat.completions.create({ ...asked, ...wrong }).catch(keep);
console.log(JSON.stringify({
  whole: whole.choices[0].message.content, streamed, tokens: [whole.usage.total_tokens, usage.total_tokens],
  call: called.choices[0].message.tool_calls[0].function, errors,
}));
"""

MEDIA_PROGRAM = """
import { readFileSync } from "node:fs";
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "unused", maxRetries: 0 });
const file = (name) => readFileSync(name).toString("base64");
const picture = { type: "image_url", image_url: { url: `data:image/png;base64,${file("it.png")}`, detail: "auto" } };
const sound = { type: "input_audio", input_audio: { data: file("it.wav"), format: "wav" } };
const ask = (content) => client.chat.completions.create({
  model: "noise", temperature: 0, max_tokens: 2, messages: [{ role: "user", content }] });
const text = { type: "text", text: "What is this?" };
const found = await ask([picture, sound, text]);
const wrong = { type: "image_url", image_url: { url: "data:image/png;base64,AAAA" } };
const error = await ask([wrong]).catch((error) => error);
const details = found.usage.prompt_tokens_details;
console.log(JSON.stringify({ details, error: [error.constructor.name, error.code] }));
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where node finds the client."""
    need("nodejs npm", [tool for tool in ("node", "npm") if not shutil.which(tool)], "apt-get install")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "openai"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
    need("", [] if done.returncode == 0 else ["the npm package openai"], "npm install openai")
    (folder / "program.mjs").write_text(PROGRAM)
    (folder / "media.mjs").write_text(MEDIA_PROGRAM)
    return folder


def test_node(package: Path, server: Server) -> None:
    command = ["node", "program.mjs", f"{server.url}/v1"]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"] == found["streamed"] == "The capital of France is Paris."
    assert found["tokens"][0] == found["tokens"][1] > 15
    assert found["call"] == {"name": "get_time", "arguments": "{}"}
    assert found["errors"] == [["NotFoundError", "model"], ["BadRequestError", "temperature"]]


def test_pictures_and_sound(package: Path, media_server: Server) -> None:
    from tests.server.test_media import BEEP, SMALL, picture_file, sound_file  # skips where packages are missing

    (package / "it.png").write_bytes(picture_file(SMALL))
    (package / "it.wav").write_bytes(sound_file(BEEP))
    command = ["node", "media.mjs", f"{media_server.url}/v1"]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["details"]["image_tokens"] > 273 and found["details"]["audio_tokens"] == 4
    assert found["error"] == ["BadRequestError", "invalid_image"]
