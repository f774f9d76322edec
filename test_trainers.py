"""Real trainers, three steps each on the CPU. By hand, because PyTorch alone is gigabytes:

python -m venv trainers
trainers/bin/pip install torch trl jmespath skyrl-gym verl verifiers pytest websockets
trainers/bin/python -m pytest -m trainers test_trainers.py

The model is tiny and randomly initialised, and so it would never write a program. Therefore its
generate() says what a script says, right and wrong by turns; everything else is TRL's own: prompts,
tool calls, rewards, advantages, losses, steps of the optimizer. Nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import HERE
from python_env import PythonEnv
from python_env import extract_code

# These packages warn of many things, and of TRL's experimental ones.
pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

STEPS = 3
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TASK = {"tests": "assert double(4) == 8\nassert double(0) == 0"}
PROGRAMS = ("def double(x): return 2 * x", "def double(x): return x", "def double(x)")
REWARDS = (1.0, 0.5, 0.0)


def make_tokenizer() -> Any:
    """A token for each byte, and Qwen's chat template, which knows tools; TRL brings a copy."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    trl = pytest.importorskip("trl")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    tokenizer.chat_template = template.read_text()
    return tokenizer


def make_model(tokenizer: Any, script: Any) -> Any:
    """A Qwen3 of some thousand parameters, whose generate() says script(prompt, row)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    class Scripted(transformers.Qwen3ForCausalLM):
        def generate(self, input_ids: Any, **_: Any) -> Any:
            prompts = tokenizer.batch_decode(input_ids)
            said = [
                tokenizer(script(prompt, row) + "<|im_end|>")["input_ids"]
                for row, prompt in enumerate(prompts)
            ]
            longest = max(map(len, said))
            padded = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids in said]
            return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    torch.manual_seed(0)
    configuration = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4_096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Scripted(configuration)


def train(tmp_path: Path, script: Any, **options: Any) -> Any:
    """GRPOTrainer after three steps, each of three completions of one prompt."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    tokenizer = make_tokenizer()
    prompt = [{"role": "user", "content": "Define `double(x)`."}]
    trainer = trl.GRPOTrainer(
        model=make_model(tokenizer, script),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt, **TASK}] * STEPS),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            num_generations=len(PROGRAMS),
            per_device_train_batch_size=len(PROGRAMS),
            max_completion_length=1_024,
            learning_rate=1e-2,
            dataloader_num_workers=1,
            dataloader_persistent_workers=False,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
        ),
        **options,
    )
    before = {name: each.detach().clone() for name, each in trainer.model.named_parameters()}
    trainer.train()
    moved = [
        name for name, each in trainer.model.named_parameters() if not each.equal(before[name])
    ]
    assert moved  # there was an advantage to learn from
    return trainer


def rewards_of(trainer: Any) -> list[float]:
    return [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]


def load_agent() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trl_agent", HERE / "examples" / "trl_agent.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["trl_agent"] = module
    spec.loader.exec_module(module)
    return module


def test_transformers_makes_a_schema_of_the_agents_tool():
    utils = pytest.importorskip("transformers.utils")
    agent = load_agent()
    schema = utils.get_json_schema(agent.PythonAgent.run_python)["function"]
    assert schema["name"] == "run_python"
    assert schema["parameters"]["required"] == ["code"]
    assert schema["parameters"]["properties"]["code"]["type"] == "string"


def test_grpo_with_the_agent_of_the_examples(tmp_path):
    agent = load_agent()
    called: list[str] = []

    def script(prompt: str, row: int) -> str:
        if "<tool_response>" in prompt:
            called.append(prompt)
            return "Done."
        call = {"name": "run_python", "arguments": {"code": PROGRAMS[row % len(PROGRAMS)]}}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"

    try:
        trainer = train(
            tmp_path,
            script,
            environment_factory=agent.PythonAgent,
            reward_funcs=[agent.reward],
        )
        environments = trainer.environments
        assert [each.score for each in environments] == [*REWARDS]
    finally:
        agent.server().close()
    assert rewards_of(trainer) == [pytest.approx(sum(REWARDS) / len(REWARDS))] * STEPS
    # The model has read what its program came to.
    assert len(called) == STEPS * len(PROGRAMS)
    assert "2 of 2 tests passed." in called[0]
    assert "1 of 2 tests passed." in called[1]
    assert "SyntaxError" in called[2]


@pytest.mark.skipif(not hasattr(PythonEnv, "score"), reason="this PythonEnv has no score()")
def test_grpo_with_score_as_its_reward(tmp_path):
    def script(prompt: str, row: int) -> str:
        return f"Like this:\n```python\n{PROGRAMS[row % len(PROGRAMS)]}\n```\n"

    with PythonEnv() as env:
        trainer = train(tmp_path, script, reward_funcs=[env.score])
    assert rewards_of(trainer) == [pytest.approx(sum(REWARDS) / len(REWARDS))] * STEPS


def test_an_environment_of_skyrl_gym(tmp_path):
    """Several turns: the model reads what its program came to, and the better one earns more."""
    skyrl_gym = pytest.importorskip("skyrl_gym")
    texts = pytest.importorskip("skyrl_gym.envs.base_text_env")

    class PythonText(texts.BaseTextEnv):  # type: ignore[name-defined, misc]
        def __init__(self, env_config: Any = None, extras: Any = None) -> None:
            super().__init__()
            self.env = PythonEnv()
            self.row = extras["row"]

        def init(self, prompt: Any) -> Any:
            self.env.reset(**self.row)
            return prompt, {}

        def step(self, action: str) -> Any:
            seen = self.env.step(extract_code(action))
            told = [{"role": "user", "content": seen.observation.feedback}]
            return texts.BaseTextEnvStepOutput(
                observations=told, reward=seen.reward, done=seen.done, metadata={}
            )

        def close(self) -> None:
            self.env.close()

    skyrl_gym.register("python_env", entry_point=PythonText)
    env = skyrl_gym.make("python_env", extras={"row": TASK})
    env.init([{"role": "user", "content": "Define `double(x)`."}])
    turns = [env.step(f"```python\n{PROGRAMS[number]}\n```") for number in (2, 1, 0)]
    env.close()
    assert [turn["reward"] for turn in turns] == [0.0, 0.5, 1.0]
    assert [turn["done"] for turn in turns] == [False, False, True]
    assert "1 of 2 tests passed" in turns[1]["observations"][0]["content"]


def test_the_reward_manager_of_verl_scores_programs():
    """Its threads share one client; what it calls a ground truth is a column of ours."""
    numpy = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    verl = pytest.importorskip("verl")
    naive = pytest.importorskip("verl.experimental.reward_loop.reward_manager.naive")
    omegaconf = pytest.importorskip("omegaconf")
    truth = json.dumps({"inputs": ["1", "4"], "outputs": ["2", "8"]})
    programs = ["print(2 * int(input()))", "print(2)", "print("]

    class Bytes:
        def decode(self, ids: Any, skip_special_tokens: bool) -> str:
            return bytes(map(int, ids)).decode()

    def as_batch(program: str) -> Any:
        tokens = torch.tensor([[*f"```python\n{program}\n```".encode()]])
        tensors = {"responses": tokens, "attention_mask": torch.ones_like(tokens)}
        others = {"data_source": "ours", "reward_model": {"ground_truth": truth}, "extra_info": {}}
        columns = {name: numpy.array([it], dtype=object) for name, it in others.items()}
        return verl.DataProto.from_dict(tensors=tensors, non_tensors=columns)

    with PythonEnv() as env:

        def compute_score(solution_str: str, ground_truth: str, **_: Any) -> float | None:
            return env.score([solution_str], input_output=[ground_truth])[0]

        async def score_all() -> list[dict[str, Any]]:
            manager = naive.NaiveRewardManager(
                omegaconf.OmegaConf.create({}), Bytes(), compute_score
            )
            return await asyncio.gather(*(manager.run_single(as_batch(it)) for it in programs))

        found = asyncio.run(score_all())
    assert [each["reward_score"] for each in found] == [1.0, 0.5, 0.0]


def test_messages_of_verifiers_are_completions():
    verifiers = pytest.importorskip("verifiers.v1")
    said = [f"```python\n{program}\n```" for program in PROGRAMS]
    chats = [[verifiers.AssistantMessage(content=text)] for text in said]
    with PythonEnv() as env:
        assert env.score(chats, tests=[TASK["tests"]] * len(chats)) == [*REWARDS]
