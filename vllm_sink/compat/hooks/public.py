"""Classes whose attributes vLLM promises."""

from __future__ import annotations

#: Classes whose attributes vLLM promises, and why. In ``vllm.config`` that holds for fields alone;
#: ``reads_config`` lists what else is read of a config.
PUBLIC = {
    "vllm.config": "a field is a setting, and most are a flag of vllm serve",
    "vllm.engine.arg_utils:EngineArgs": "a field is a flag of vllm serve",
    "vllm.engine.arg_utils:AsyncEngineArgs": "a field is a flag of vllm serve",
    "vllm.sampling_params:SamplingParams": "a user writes it",
    "vllm.sampling_params:BeamSearchParams": "a user writes it",
    "vllm.sampling_params:RequestOutputKind": "a user chooses one",
    "vllm.outputs:RequestOutput": "a user gets it",
    "vllm.outputs:CompletionOutput": "a user gets it",
    "vllm.outputs:WeightVersionSpan": "a user gets it",
    "vllm.platforms.interface:Platform": "what a plugin may ask of the platform",
    "vllm.utils.argparse_utils:FlexibleArgumentParser": "it is an argparse.ArgumentParser",
    "vllm.v1.engine:EngineCoreRequest": "copied whole, whichever fields it has",
}
