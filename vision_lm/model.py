"""VisionLM: pictures and a question in, an answer out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar, Unpack, overload

import torch
from torch import Tensor

from vision_lm.answer import Answer, AnswerStream, AnswerWriter
from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.encoder import ImageEncoder, feature_width
from vision_lm.engine import Engine, Options, Sampling, TorchDecoder, choose_device, choose_dtype
from vision_lm.errors import RequestError, VisionLMError
from vision_lm.images import ImageSource
from vision_lm.pictures import Picture, Pictures
from vision_lm.prompts import CaptionLength, PromptBuilder, Turn, turns_from_messages
from vision_lm.skeleton import build_on_meta

ANSWER_TOKENS = 64
CAPTION_TOKENS: dict[CaptionLength, int] = {"short": 32, "normal": 96, "long": 192}
WINDOW = 64  # requests of a list that are in memory at once, with their pictures

T = TypeVar("T")
Messages: TypeAlias = list[dict[str, Any]]
Reply: TypeAlias = Answer | VisionLMError  # in a list, a bad request's error stands in its place


@dataclass(frozen=True)
class Task:
    """How the answers of one call are to be written."""

    sampling: Sampling
    caption: bool
    shorten: bool  # max_tokens is our own default: where the prompt leaves less room, less will do


@dataclass(frozen=True)
class Request:
    """A conversation that has been checked and whose pictures have been opened."""

    ids: list[int]  # (T,)
    pictures: list[Picture]
    sampling: Sampling


class VisionLM:
    """A vision-language model that captions, answers and chats: one request, or a list of them batched.

    A list gives a list, in which a bad request's error stands in its place; a bad request alone raises it.
    Every method takes `max_tokens`, `temperature`, `top_p`, `top_k` and `seed`; without them it is greedy.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        *,
        allow_url_hosts: Collection[str] = (),
    ) -> None:
        """`device`: auto, cpu, cuda, cuda:1, ...; `dtype`: auto, float32, bfloat16 or float16.

        `allow_url_hosts`: the hosts from which pictures given as http(s) URLs are fetched; see `vision_lm.fetch`.
        """
        self.checkpoint = checkpoint
        self.allow_url_hosts = allow_url_hosts
        self.config = config = checkpoint.config
        self.device = choose_device(device)
        parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
        self.dtype = choose_dtype(dtype, config.dtype, parameters, self.device)
        encoder, projector = build_on_meta(config)
        tokens_per_image = feature_width(encoder)[0] + len(config.vision.pooled)
        if any(name not in encoder.state_dict() for name, _ in encoder.named_buffers()):
            encoder = ImageEncoder(config.vision)  # it has buffers that only its constructor can compute
        self.encoder = self._filled(encoder, "encoder.")
        self.projector = self._filled(projector, "projector.")
        self.engine = Engine(TorchDecoder(config.text, self._tensors("phi."), self.device, self.dtype))
        self.prompts = PromptBuilder(checkpoint.tokenizer, config.prompt, tokens_per_image)
        self.writer = AnswerWriter(self.prompts.decode, config.calibration)

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        found = self.checkpoint.tensors.items()
        return {name.removeprefix(prefix): tensor for name, tensor in found if name.startswith(prefix)}

    def _filled(self, module: Any, prefix: str) -> Any:
        module.load_state_dict(self._tensors(prefix), assign=True)
        return module.to(self.device, self.dtype).eval().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        device: str = "auto",
        dtype: str = "auto",
        *,
        allow_url_hosts: Collection[str] = (),
    ) -> VisionLM:
        """From an embedded name ("mini"), a folder, or a hub id ("owner/name"). Raises CheckpointError."""
        return cls(read_checkpoint(source), device, dtype, allow_url_hosts=allow_url_hosts)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the checkpoint that this model was made from, in its own dtype."""
        write_checkpoint(folder, self.config, self.checkpoint.tensors, self.checkpoint.tokenizer)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the checkpoint to the Hugging Face hub, to a new repository if need be; returns its URL."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.upload_folder(repo_id=repo_id, folder_path=folder)
        return address

    @overload
    def caption(
        self, image: list[Any], length: CaptionLength = ..., **options: Unpack[Options]
    ) -> list[Reply]: ...
    @overload
    def caption(
        self, image: ImageSource, length: CaptionLength = ..., **options: Unpack[Options]
    ) -> Answer: ...
    def caption(self, image: Any, length: CaptionLength = "normal", **options: Unpack[Options]) -> Any:
        """Describe a picture, or each of a list, in whole sentences. `length`: short, normal or long."""
        question, task = self._caption_task(length, options)
        if isinstance(image, list):
            return self._replies([[Turn(question, (one,))] for one in image], task)
        return self._reply([Turn(question, (image,))], task)

    @overload
    def ask(self, image: list[Any], question: str | list[str], **options: Unpack[Options]) -> list[Reply]: ...
    @overload
    def ask(self, image: Any, question: list[str], **options: Unpack[Options]) -> list[Reply]: ...
    @overload
    def ask(self, image: ImageSource | None, question: str, **options: Unpack[Options]) -> Answer: ...
    def ask(self, image: Any, question: Any, **options: Unpack[Options]) -> Any:
        """Answer a question about a picture, or about none (None).

        Lists are paired, picture by question; a single picture or question serves a whole list of the other.
        """
        task = self._task(ANSWER_TOKENS, options)
        count = next((len(one) for one in (image, question) if isinstance(one, list)), None)
        if count is None:
            return self._reply([_turn(image, question)], task)
        images = image if isinstance(image, list) else [image] * count
        questions = question if isinstance(question, list) else [question] * count
        if len(images) != len(questions):
            raise RequestError(
                f"{len(images)} images, {len(questions)} questions; give as many, or one for all"
            )
        return self._replies([[_turn(*pair)] for pair in zip(images, questions, strict=True)], task)

    @overload
    def chat(self, messages: Messages, **options: Unpack[Options]) -> Answer: ...
    @overload
    def chat(self, messages: list[Messages], **options: Unpack[Options]) -> list[Reply]: ...
    def chat(self, messages: Any, **options: Unpack[Options]) -> Any:
        """Answer a conversation's last message, or that of each of a list; see `turns_from_messages`."""
        task = self._task(ANSWER_TOKENS, options)
        if messages and all(isinstance(one, list) for one in messages):
            return self._replies([_attempt(turns_from_messages, one) for one in messages], task)
        return self._reply(turns_from_messages(messages), task)

    def stream(self, image: ImageSource | None, question: str, **options: Unpack[Options]) -> AnswerStream:
        """`ask` one question: the answer's text in pieces, while it is written."""
        return self._stream([_turn(image, question)], self._task(ANSWER_TOKENS, options))

    def stream_caption(
        self, image: ImageSource, length: CaptionLength = "normal", **options: Unpack[Options]
    ) -> AnswerStream:
        """`caption` one picture, sentence by sentence."""
        question, task = self._caption_task(length, options)
        return self._stream([Turn(question, (image,))], task)

    def stream_chat(self, messages: Messages, **options: Unpack[Options]) -> AnswerStream:
        """`chat` in one conversation: the answer's text in pieces, while it is written."""
        return self._stream(turns_from_messages(messages), self._task(ANSWER_TOKENS, options))

    def encode_images(self, images: Sequence[ImageSource]) -> list[Tensor]:
        """The image tokens (M, Dt) of each picture, as the language model sees them. Raises ImageError."""
        pictures = self._pictures()
        return pictures.encode([pictures.open(image) for image in images])

    def _pictures(self) -> Pictures:
        return Pictures(self.encoder, self.projector, self.allow_url_hosts)

    def _caption_task(self, length: CaptionLength, options: Options) -> tuple[str, Task]:
        question = self.prompts.caption_question(length)
        return question, self._task(CAPTION_TOKENS[length], options, caption=True)

    def _task(self, max_tokens: int, options: Options, *, caption: bool = False) -> Task:
        if unknown := options.keys() - Options.__annotations__.keys():
            allowed = ", ".join(Options.__annotations__)
            raise RequestError(f"unknown option {min(unknown)!r}; allowed: {allowed}")
        settings: Options = {"max_tokens": max_tokens, **options}
        sampling = Sampling(**settings, stop_ids=frozenset([self.config.prompt.eos_token_id]))
        return Task(sampling, caption, shorten="max_tokens" not in options)

    def _reply(self, turns: Sequence[Turn], task: Task) -> Answer:
        pictures = self._pictures()
        return self._answers([self._request(turns, task, pictures)], task, pictures)[0]

    def _replies(self, conversations: Sequence[Sequence[Turn] | VisionLMError], task: Task) -> list[Reply]:
        pictures = self._pictures()
        replies: list[Reply] = []
        for start in range(0, len(conversations), WINDOW):
            window = conversations[start : start + WINDOW]
            requests = [
                one if isinstance(one, VisionLMError) else _attempt(self._request, one, task, pictures)
                for one in window
            ]
            good = [one for one in requests if isinstance(one, Request)]
            answers = iter(self._answers(good, task, pictures))
            replies += [next(answers) if isinstance(one, Request) else one for one in requests]
            pictures.forget()
        return replies

    def _stream(self, turns: Sequence[Turn], task: Task) -> AnswerStream:
        pictures = self._pictures()
        request = self._request(turns, task, pictures)  # now: a bad one raises before the first piece
        tokens = self.engine.stream(self._embed(request, pictures), request.sampling)
        return AnswerStream(self.writer.pieces(tokens, caption=task.caption))

    def _request(self, turns: Sequence[Turn], task: Task, pictures: Pictures) -> Request:
        """Check a conversation, cheapest first: the picture files are read last."""
        prompt = self.prompts.build(turns)
        sampling = task.sampling
        if task.shorten:
            room = self.config.text.max_position_embeddings - len(prompt.ids)
            sampling = replace(sampling, max_tokens=max(1, min(sampling.max_tokens, room)))
        self.engine.check(len(prompt.ids), sampling)
        return Request(prompt.ids, [pictures.open(image) for image in prompt.images], sampling)

    def _answers(self, requests: Sequence[Request], task: Task, pictures: Pictures) -> list[Answer]:
        pictures.encode([picture for request in requests for picture in request.pictures])
        prompts = [self._embed(request, pictures) for request in requests]
        generations = self.engine.generate(prompts, [request.sampling for request in requests])
        return [self.writer.whole(generation, caption=task.caption) for generation in generations]

    @torch.inference_mode()
    def _embed(self, request: Request, pictures: Pictures) -> Tensor:
        """Prompt embeddings (T, Dt) with the image tokens in their places."""
        embeddings = self.engine.decoder.embed(request.ids)  # (T, Dt)
        if request.pictures:
            ids = torch.tensor(request.ids, device=self.device)  # (T,)
            tokens = torch.cat(pictures.encode(request.pictures))  # (pictures * M, Dt)
            embeddings[ids == self.config.prompt.image_token_id] = tokens
        return embeddings


def _turn(image: ImageSource | None, question: str) -> Turn:
    return Turn(question, () if image is None else (image,))


def _attempt(function: Callable[..., T], *arguments: Any) -> T | VisionLMError:
    """What the function returns, or the error as a value, free of tracebacks that would keep the call's memory."""
    try:
        return function(*arguments)
    except VisionLMError as error:
        if error.__cause__:
            error.__cause__.with_traceback(None)
        return error.with_traceback(None)
