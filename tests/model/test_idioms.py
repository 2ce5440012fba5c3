"""What users of transformers do with any model: pickle it, copy it, train adapters."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tiny_lvit import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def batch():
    image = Image.effect_noise((40, 40), 60)
    mask = Image.new("L", (40, 40))
    mask.paste(255, (0, 0, 20, 40))
    return tiny_processor()(images=image, text="one area, left lung", segmentation_maps=mask, return_tensors="pt")


@pytest.mark.parametrize(
    "clone", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_a_model_that_has_recorded_its_hidden_states_can_be_cloned(clone, batch):
    model = tiny_model()
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True)
        for other in (clone(model), model):  # the model itself goes on as before
            outputs = other(**batch, output_hidden_states=True)
            assert torch.equal(outputs.logits, expected.logits)
            assert len(outputs.hidden_states) == len(expected.hidden_states) > 1


def parameters_with_gradients(model: torch.nn.Module, batch) -> dict[str, bool]:
    model.train()(**batch).loss.backward()
    return {name: p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("targets", [["query", "value"], ["dense"], "all-linear"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_of_the_text_tower_learn(targets, checkpointing, batch):
    model = tiny_model()
    if checkpointing:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, lora_dropout=0.1, init_lora_weights=False))
    learns = parameters_with_gradients(model, batch)
    adapters = [name for name in learns if "lora_" in name and ".text_model." in name]
    assert adapters and all(learns[name] for name in adapters), [name for name in adapters if not learns[name]]
    assert all(module.training for name, module in model.named_modules() if "lora_dropout" in name)


def test_a_text_tower_without_adapters_stays_as_it_is(batch):
    model = tiny_model()
    learns = parameters_with_gradients(model, batch)
    assert learns and not any(".text_model." in name for name in learns)
    assert model.training and not model.lvit.text_model.training
    text_embeds, _ = model.lvit.get_text_embeds(batch["input_ids"], batch["attention_mask"])
    assert not text_embeds.requires_grad  # nothing is kept for a backward pass


def test_a_text_tower_that_is_thawed_by_hand_learns(batch):
    model = tiny_model()
    model.lvit.text_model.requires_grad_(True)
    learns = parameters_with_gradients(model, batch)
    assert learns["lvit.text_model.encoder.layer.0.output.dense.weight"] and model.lvit.text_model.training
