"""The chosen rows in the forms of other trainers, with the configuration that names them.

Written for LLaMA-Factory 0.9, axolotl 0.15 and TRL 1.x. None of them reads weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Literal

from backcast.data import Example, conversation
from backcast.errors import InputError
from backcast.files import read_json, write_atomic
from backcast.manifests.manifest import Manifest
from backcast.manifests.materialise import Chosen, Images, Record, parts, write_jsonl

Kind = Literal["text", "instruction", "conversation", "preference"]

#: What the file that names the rows ends in; LLaMA-Factory takes a folder.
CONFIGURATIONS = (".yaml", ".yml", ".py")

#: How messages name their parts, in LLaMA-Factory's words.
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def kind_of(chosen: Chosen, trainer: str) -> Kind:
    """What the trainer is to take them for."""
    found = chosen.fields & {"text", "response", "messages", "chosen"}
    if found == {"chosen"}:
        return "preference"
    if found == {"text"} and not chosen.pictured:
        return "text"
    if found == {"response"} and not chosen.pictured:
        return "instruction"
    if found and found <= {"response", "messages"}:
        return "conversation"
    raise InputError(
        f"{chosen.manifest.path}: {trainer} trains on texts, instructions, conversations or preference pairs, each "
        f"by itself; this holds {', '.join(sorted(chosen.fields))}; export jsonl or parquet"
    )


def rows_of(out: Path, manifest: Manifest) -> Path:
    """The file of the rows: in a folder it is called after the manifest, else it lies beside ``out``."""
    return (
        out.with_suffix(".data.jsonl")
        if out.suffix in CONFIGURATIONS
        else out / f"{manifest.path.stem}.data.jsonl"
    )


# ------------------------------------------------------------------ LLaMA-Factory


def llamafactory(chosen: Chosen, out: Path) -> list[Path]:
    """A folder for ``dataset_dir``: the rows as JSON lines, and their entry in ``dataset_info.json``.

    The entry is called as the manifest is; other entries of a ``dataset_info.json`` that is there already stay.
    """
    kind, name = kind_of(chosen, "LLaMA-Factory"), chosen.manifest.path.stem
    info, data = out / "dataset_info.json", rows_of(out, chosen.manifest)
    entries = read_json(info) if info.exists() else {}
    if not isinstance(entries, dict):
        raise InputError(f"{info}: not an object of data sets; mend it or export to another folder")
    held = entries.get(name, {"file_name": data.name})
    if not isinstance(held, dict) or held.get("file_name") != data.name:
        raise InputError(f"{info}: has a data set {name!r} of another file; rename the manifest or the entry")
    show = Images(data)
    write_jsonl(
        data, ({**_llamafactory(kind, example, show, chosen.pictured), **more} for example, more in chosen)
    )
    entries[name] = {"file_name": data.name, **_entry(kind, chosen.pictured)}
    write_atomic(info, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
    return [info, data]


def _entry(kind: Kind, pictured: bool) -> Record:
    if kind == "text":
        return {"columns": {"prompt": "text"}}
    if kind == "instruction":
        return {"columns": {"prompt": "instruction", "response": "output"}}
    if kind == "preference":
        columns = {name: name for name in ("messages", "chosen", "rejected")}
        return {"formatting": "sharegpt", "ranking": True, "columns": columns, "tags": TAGS}
    columns = {name: name for name in ("messages", *(["images"] if pictured else []))}
    return {"formatting": "sharegpt", "columns": columns, "tags": TAGS}


def _llamafactory(kind: Kind, example: Example, show: Images, pictured: bool) -> Record:
    if kind != "conversation":
        return _plain(kind, example, "LLaMA-Factory")
    messages, images = conversation(example)
    marked = [{"role": m["role"], "content": _marked(m["content"])} for m in messages]
    return {"messages": marked, **({"images": [show(image) for image in images]} if pictured else {})}


def _marked(content: str | list[Record]) -> str:
    """Its parts as one text, with an ``<image>`` for each image."""
    return "".join("<image>" if part["type"] == "image" else part["text"] for part in parts(content))


# ------------------------------------------------------------------ axolotl


def axolotl(chosen: Chosen, out: Path) -> list[Path]:
    """What to put into axolotl's configuration, as YAML, and beside it the rows as JSON lines.

    Its paths are absolute, as axolotl takes others to start at the working directory.
    """
    import yaml

    kind, data = kind_of(chosen, "axolotl"), rows_of(out, chosen.manifest)
    show = Images(data, absolute=True)
    write_jsonl(
        data, ({**_axolotl(kind, example, show, chosen.pictured), **more} for example, more in chosen)
    )
    settings = _settings(kind, str(data.resolve()), chosen.pictured)
    write_atomic(out, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return [out, data]


def _settings(kind: Kind, path: str, pictured: bool) -> Record:
    place = {"path": path, "ds_type": "json", "split": "train"}
    roles = {"message_property_mappings": {"role": "role", "content": "content"}}
    if kind == "text":
        return {"datasets": [{**place, "type": "completion", "field": "text"}]}
    if kind == "instruction":
        return {"datasets": [{**place, "type": "alpaca"}]}
    if kind == "preference":
        fields = {f"field_{name}": name for name in ("messages", "chosen", "rejected")}
        return {"rl": "dpo", "datasets": [{**place, "type": "chat_template.default", **fields, **roles}]}
    datasets = [{**place, "type": "chat_template", "field_messages": "messages", **roles}]
    if not pictured:
        return {"datasets": datasets}
    return {
        "processor_type": "AutoProcessor",
        "skip_prepare_dataset": True,
        "remove_unused_columns": False,
        "sample_packing": False,
        "datasets": datasets,
    }


def _axolotl(kind: Kind, example: Example, show: Images, pictured: bool) -> Record:
    if kind != "conversation":
        return _plain(kind, example, "axolotl")
    messages, images = conversation(example)
    if not pictured:
        return {"messages": messages}
    paths = map(show, images)
    return {"messages": [{"role": m["role"], "content": _with_paths(m["content"], paths)} for m in messages]}


def _with_paths(content: str | list[Record], paths: Iterator[str]) -> list[Record]:
    """Its parts, each image with its path."""
    return [{**part, "path": next(paths)} if part["type"] == "image" else part for part in parts(content)]


# ------------------------------------------------------------------ TRL


def trl(chosen: Chosen, out: Path) -> list[Path]:
    """A script that fine-tunes a model on the rows, and beside it the rows as JSON lines."""
    kind, data = kind_of(chosen, "TRL"), rows_of(out, chosen.manifest)
    show = Images(data, absolute=True)
    spoken = kind == "preference" and any(_spoken(example) for example in chosen.examples)
    write_jsonl(
        data, ({**_trl(kind, example, show, chosen.pictured, spoken), **more} for example, more in chosen)
    )
    script = _SCRIPT.substitute(
        count=len(chosen.examples),
        manifest=chosen.manifest.path.name,
        script=out.name,
        data=json.dumps(data.name),
        cast='.cast_column("images", Sequence(Image()))' if chosen.pictured else "",
        features="Image, Sequence, " if chosen.pictured else "",
        trainer="DPO" if kind == "preference" else "SFT",
    )
    write_atomic(out, script)
    return [out, data]


_SCRIPT = Template('''"""Fine-tune on the $count examples of $manifest with TRL: python $script MODEL"""

import sys
from pathlib import Path

from datasets import ${features}load_dataset

DATA = Path(__file__).with_name($data)

dataset = load_dataset("json", data_files=str(DATA), split="train")$cast

if __name__ == "__main__":
    from trl import ${trainer}Config, ${trainer}Trainer

    args = ${trainer}Config(output_dir=str(DATA.with_name("trained")))
    trainer = ${trainer}Trainer(model=sys.argv[1], args=args, train_dataset=dataset)
    trainer.train()
    trainer.save_model()
''')


def _trl(kind: Kind, example: Example, show: Images, pictured: bool, spoken: bool) -> Record:
    fields = example.fields
    if kind == "text":
        return {"text": fields["text"]}
    if kind == "instruction":
        return {"prompt": fields["prompt"], "completion": fields["response"]}
    if kind == "preference":
        if not spoken:
            return {name: fields[name] for name in ("prompt", "chosen", "rejected")}
        prompt, chosen, rejected = _pair(example)
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    messages, images = conversation(example)
    if not pictured:
        return {"messages": messages}
    contents = [{"role": m["role"], "content": parts(m["content"])} for m in messages]
    return {"messages": contents, "images": [show(image) for image in images]}


# ------------------------------------------------------------------ what several trainers share


def _plain(kind: Kind, example: Example, trainer: str) -> Record:
    """What LLaMA-Factory and axolotl read alike."""
    fields = example.fields
    if kind == "text":
        return {"text": fields["text"]}
    if kind == "instruction":
        return {"instruction": fields["prompt"], "output": fields["response"]}
    prompt, *answers = _pair(example)
    for name, answer in zip(("chosen", "rejected"), answers, strict=True):
        if len(answer) != 1:
            raise InputError(
                f"row {example.row} of {example.source}: {name!r} is {len(answer)} messages, where {trainer} takes "
                "one; export trl"
            )
    return {"messages": prompt, "chosen": answers[0][0], "rejected": answers[1][0]}


def _spoken(example: Example) -> bool:
    """Whether a preference pair is of messages, at least in part."""
    return any(isinstance(example.fields[name], list) for name in ("prompt", "chosen", "rejected"))


def _pair(example: Example) -> tuple[list[Record], list[Record], list[Record]]:
    """A preference pair as messages: the prompt, and each answer without the prompt, where it repeats that."""
    prompt = _messages(example.fields["prompt"], "user")
    chosen, rejected = (_messages(example.fields[name], "assistant") for name in ("chosen", "rejected"))
    return prompt, _after(prompt, chosen), _after(prompt, rejected)


def _after(prompt: list[Record], answer: list[Record]) -> list[Record]:
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer


def _messages(value: str | list[Record], role: str) -> list[Record]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value
