"""One run of the benchmark, from the settings to the report."""

from __future__ import annotations

import statistics

import torch

from vision_lm.bench.machine import BandwidthProbe, Machine, peak_resident_bytes
from vision_lm.bench.measure import Answered, Meter
from vision_lm.bench.report import Latency, Measured, Memory, Report
from vision_lm.bench.roofline import Roofline, weight_bytes
from vision_lm.bench.settings import Settings
from vision_lm.bench.shapes import shape_config
from vision_lm.bench.weights import counting, random_checkpoint
from vision_lm.checkpoint import Checkpoint, patch_layout, read_checkpoint
from vision_lm.config import Config
from vision_lm.engine import Mode
from vision_lm.model import VisionLM


def run(settings: Settings) -> Report:
    """Measure. Raises RequestError or CheckpointError, before anything large is made, for what cannot be measured."""
    if settings.shape is None:
        checkpoint = read_checkpoint(settings.model)
        prompt = _prompt_tokens(checkpoint.config, settings)
        checkpoint = counting(checkpoint)
    else:
        config = shape_config(settings.shape)
        prompt = _prompt_tokens(config, settings)
        checkpoint = random_checkpoint(config)
    return _measure(settings, checkpoint, prompt)


def _prompt_tokens(config: Config, settings: Settings) -> int:
    picture = patch_layout(config.vision)[0] + config.pooled_tokens
    return settings.prompt_tokens(picture, config.text.max_position_embeddings)


def _measure(settings: Settings, checkpoint: Checkpoint, prompt: int) -> Report:
    """The streams first: they need the most memory, and the probe's own buffer must not count as the model's."""
    vlm = VisionLM(checkpoint, settings.device, settings.dtype, settings.quantize)
    config, parameters = checkpoint.config, sum(one.numel() for one in checkpoint.tensors.values())
    meter = Meter(vlm, prompt, settings.tokens)
    shared = meter.picture()
    meter.answer(
        shared, tokens=2
    )  # the first of everything is slow; and from here on the cache knows this picture
    streams = tuple(meter.streams(count, shared, settings.repeat) for count in settings.concurrency)
    memory = _memory(vlm, settings.quantize)

    probe = BandwidthProbe(vlm.device)
    news: list[Answered] = []
    again: list[Answered] = []
    before = meter.engine_time()
    for _ in range(settings.repeat):
        probe.read()
        picture = meter.picture()
        news.append(meter.answer(picture, settings.tokens))
        again.append(meter.answer(picture, tokens=1))
    latency = Latency(
        first_token_s=statistics.median(one.first_token_s for one in news),
        first_token_same_picture_s=statistics.median(one.first_token_s for one in again),
        token_s=statistics.median(gap for one in news for gap in one.token_s),
        overhead=meter.engine_time().overhead_since(before),
    )
    bandwidth = probe.result()
    context = prompt + settings.tokens // 2  # of the median token
    return Report(
        command=settings.command,
        machine=Machine.of(vlm.device),
        model=Measured(
            name=config.name if settings.shape is None else f"{settings.shape}'s shape, random weights",
            parameters=parameters,
            dtype=str(vlm.dtype).removeprefix("torch."),
            quantize=settings.quantize,
            image_tokens=vlm.prompts.tokens_per_image,
            prompt_tokens=prompt,
            answer_tokens=settings.tokens,
        ),
        bandwidth=bandwidth,
        latency=latency,
        roofline=Roofline.of(
            config.text, vlm.dtype, settings.quantize, context, bandwidth.bytes_per_s, latency.token_s
        ),
        streams=streams,
        memory=memory,
    )


def _memory(vlm: VisionLM, quantize: Mode) -> Memory:
    text = vlm.config.text
    decoder = (
        weight_bytes(text, vlm.dtype, quantize) + text.vocab_size * text.hidden_size * vlm.dtype.itemsize
    )
    modules = [*vlm.encoder.state_dict().values(), *vlm.projector.state_dict().values()]
    on_gpu = vlm.device.type == "cuda"
    return Memory(
        weights=decoder + sum(tensor.nbytes for tensor in modules),
        cache=vlm.engine.cache.nbytes,
        peak_resident=peak_resident_bytes(),
        peak_cuda=torch.cuda.max_memory_allocated(vlm.device) if on_gpu else None,
    )
