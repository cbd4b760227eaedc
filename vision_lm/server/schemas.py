"""What may be asked and what is answered, as OpenAPI shows it. The chat's names are OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vision_lm.engine.sampling import MAX_TOP_LOGPROBS, Options

MAX_MESSAGES = 200
MAX_CHOICES = 16
EXAMPLE_PICTURE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
PICTURE = "a data URL (data:image/png;base64,...), or an http(s) URL of a host that the server permits"

Seed: TypeAlias = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


MAX_NAMES = 100  # of one object; no request has half as many


class Given(BaseModel):
    """What a client sends. A name that is not known is refused: a setting without effect would mislead."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_names(cls, data: Any) -> Any:
        """A body of a million unknown names would have a million errors before the first is told."""
        if isinstance(data, dict) and len(data) > MAX_NAMES:
            raise ValueError(f"has {len(data):,} fields; at most {MAX_NAMES} are known")
        return data


class SamplingFields(Given):
    """How the answer is written. Without them it is greedy: the same every time."""

    model: str | None = Field(None, description="a name of /v1/models; the first if none is given")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, description="0, the default, is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: Seed | None = Field(None, description="the same seed gives the same answer")
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="the answer ends before any of these texts"
    )

    def options(self) -> Options:
        """Those that are given, as the model takes them."""
        names = {"max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop"}
        options: Any = self.model_dump(include=names, exclude_none=True)
        if self.seed is not None:
            options["seed"] = self.seed % 2**63  # some clients' seeds are negative
        return options


class TextPart(Given):
    type: Literal["text"]
    text: str


class ImageURL(Given):
    url: str = Field(description=PICTURE)
    detail: Literal["auto", "low", "high"] | None = Field(None, description="has no effect")


class ImagePart(Given):
    type: Literal["image_url"]
    image_url: ImageURL


Part: TypeAlias = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(Given):
    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None


class UserMessage(Given):
    role: Literal["user"]
    content: str | Annotated[list[Part], Field(min_length=1, fail_fast=True)]
    name: str | None = None


class AssistantMessage(BaseModel):
    """An earlier answer. Clients send back all that they got with it: what is not its text is ignored."""

    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]


Message: TypeAlias = Annotated[
    SystemMessage | UserMessage | AssistantMessage,
    Field(discriminator="role"),
]


class StreamOptions(Given):
    include_usage: bool = False
    include_obfuscation: bool | None = Field(None, description="has no effect")


class TextFormat(Given):
    type: Literal["text"]


class JSONObjectFormat(Given):
    type: Literal["json_object"]


class JSONSchema(Given):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = Field(None, description="answers always follow the schema")


class JSONSchemaFormat(Given):
    type: Literal["json_schema"]
    json_schema: JSONSchema


ResponseFormat: TypeAlias = Annotated[
    TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")
]


class ChatRequest(SamplingFields):
    """OpenAI's request. What this service cannot do is taken only where it asks for nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "mini",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "text", "text": "What is in the picture?"},
                                {"type": "image_url", "image_url": {"url": EXAMPLE_PICTURE}},
                            ],
                        }
                    ],
                    "max_tokens": 32,
                }
            ]
        }
    )

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None

    # Taken only where they ask for nothing.
    frequency_penalty: float | None = Field(None, ge=0, le=0, description="use repetition_penalty")
    presence_penalty: float | None = Field(None, ge=0, le=0, description="use repetition_penalty")
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    tools: list[Any] | None = Field(None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None

    # Taken, and without effect here.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]


class Usage(BaseModel):
    """In tokens. A picture counts as many as the language model sees of it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]
    confidence: float = Field(ge=0, le=1, description="calibrated probability that the answer is right")
    unanswerable: bool = Field(
        description="says that there is no answer, or is less sure than the checkpoint's threshold: better say that nobody knows"
    )


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vision-lm"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class CaptionFields(SamplingFields):
    length: Literal["short", "normal", "long"] = "normal"
    checked: bool = Field(
        False,
        description='call "something" what the model, asked about each thing that it names, does not find',
    )


class AskFields(SamplingFields):
    question: str
    json_schema: dict[str, Any] | str | None = Field(None, description="a JSON schema for the answer")
    choices: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="the answer is one of these texts"
    )

    def options(self) -> Options:
        options = super().options()
        if self.json_schema is not None:
            options["json_schema"] = self.json_schema
        if self.choices is not None:
            options["choices"] = self.choices
        return options


class ImageField(Given):
    image: str = Field(description=PICTURE)


class CaptionRequest(CaptionFields, ImageField):
    model_config = ConfigDict(json_schema_extra={"examples": [{"image": EXAMPLE_PICTURE, "length": "short"}]})


class AskRequest(AskFields, ImageField):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": EXAMPLE_PICTURE, "question": "What colour is it?"}]}
    )


class PointOf(BaseModel):
    """A place in the picture that an answer points at."""

    at: int = Field(description="how many characters of the text come before it")
    x: float = Field(ge=0, le=1, description="from left to right")
    y: float = Field(ge=0, le=1, description="from top to bottom")


class SimpleAnswer(BaseModel):
    """The answer to a question."""

    model: str
    text: str
    confidence: float = Field(ge=0, le=1)
    unanswerable: bool = Field(
        description="says that there is no answer, or is less sure than the checkpoint's threshold: better say that nobody knows"
    )
    finish_reason: Literal["stop", "length", "repetition", "cancelled"]
    points: list[PointOf] = Field(description="where in the picture the answer points, if the checkpoint can")
    usage: Usage


class CaptionAnswer(SimpleAnswer):
    """A caption. Of a checked one, confidence and usage are those of what was first written."""

    unconfirmed: list[str] = Field(
        description="what a checked caption first named, and does not say any more"
    )


class Status(BaseModel):
    status: Literal["ok", "ready"]
