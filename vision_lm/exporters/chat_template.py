"""The checkpoint's prompt as a chat template in Jinja, and its tokenizer with a word for a picture's place."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from vision_lm.config import PromptConfig
from vision_lm.errors import ExportError
from vision_lm.prompts import PLACEHOLDER

# vLLM hands over a message's parts only where it finds a loop over the very name `content`; otherwise it joins them to
# one text, with a line break after the picture that our prompt does not have.
_TEMPLATE = """
{{- opening -}}
{%- for message in messages -%}
    {%- set content = message['content'] -%}
    {%- set ns = namespace(images='', texts=[]) -%}
    STRINGS
    {%- set content = [] if content is string else content -%}
    {%- for part in content -%}
        {%- if part is string -%}{%- set ns.texts = ns.texts + [part] -%}
        {%- elif part['type'] == 'text' -%}{%- set ns.texts = ns.texts + [part['text']] -%}
        {%- elif part['type'] == 'image' -%}{%- set ns.images = ns.images + image -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if message['role'] == 'user' -%}
        {{- ahead + ns.images + before + (ns.texts | join(' ') | trim) + after -}}
    {%- else -%}
        {{- lead + (ns.texts | join(' ')) + end -}}
    {%- endif -%}
{%- endfor -%}
"""
_PLAIN = "{%- if content is string -%}{%- set ns.texts = [content] -%}{%- endif -%}"
# llama.cpp puts a message's parts into one string, with a marker where a picture is.
_MARKED = """
    {%- if content is string -%}
        {%- for piece in content.split('<__media') -%}
            {%- set parts = piece.split('__>', 1) -%}
            {%- if loop.first or parts | length == 1 -%}{%- set ns.texts = ns.texts + [piece] -%}
            {%- else -%}
                {%- set ns.images = ns.images + image.replace(PLACEHOLDER, '<__media' + parts[0] + '__>') -%}
                {%- set ns.texts = ns.texts + [parts[1]] -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
"""


def chat_template(prompt: PromptConfig, end: str, *, marked: bool = False) -> str:
    """The pictures where the checkpoint has them, the question as it asks it; answers end with the token `end`.

    `marked`: for llama.cpp, which has a marker in a message's text for each of its pictures.
    Raises ExportError for a first token: who renders a template adds that or not, as they think fit.
    """
    if prompt.bos_token_id is not None:
        raise ExportError(
            "a prompt that begins with a token of its own, which a chat template cannot promise"
        )
    blank = "\0"
    asked, after = prompt.question.format(images="\1", question=blank).split(blank)
    ahead, pictures, before = asked.partition("\1")
    if not pictures:
        ahead, before = "", asked
    lead, trail = prompt.answer.format(answer=blank).split(blank)
    pieces = {
        "opening": prompt.system,
        "ahead": ahead,
        "before": before,
        "after": after,
        "lead": lead,
        "end": trail + end,
        "image": prompt.image.format(image=PLACEHOLDER),
    }
    named = (f"{{%- set {name} = {json.dumps(text)} -%}}" for name, text in pieces.items())
    strings = _MARKED.replace("PLACEHOLDER", repr(PLACEHOLDER)) if marked else _PLAIN
    return "\n".join(named) + _TEMPLATE.replace("STRINGS", strings.strip())


def tokenizer_with_image(tokenizer: Tokenizer, image_token_id: int) -> str:
    """`tokenizer.json` in which `<image>` is the special token of this id, and every other id is as it was.

    Raises ExportError for a tokenizer that is no BPE.
    """
    saved: dict[str, Any] = json.loads(tokenizer.to_str())
    if saved["model"]["type"] != "BPE":
        raise ExportError(f"a tokenizer of type {saved['model']['type']}; Phi's is a BPE")
    # Added tokens get the next free ids when a tokenizer is read, unless its vocabulary has them already.
    vocabulary = tokenizer.get_vocab(with_added_tokens=True) | {PLACEHOLDER: image_token_id}
    saved["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    saved["added_tokens"] += [{"id": image_token_id, "content": PLACEHOLDER, **flags}]
    return json.dumps(saved, ensure_ascii=False, indent=1)
