"""Digits with the Hugging Face Trainer, started by torchrun.

torchrun --nproc-per-node 4 examples/frameworks/hf_torchrun.py
"""

import argparse
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

import pushsum_opt as ps


class Digits(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.post_init()

    def forward(self, images, labels):
        logits = self.network(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--accumulate", type=int, default=1, help="batches per step")
    parser.add_argument("--out", default="out")
    arguments = parser.parse_args()

    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    rows = [{"images": image, "labels": label} for image, label in zip(images, digits.target, strict=True)]
    model = Digits(PretrainedConfig())
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, staleness=1)
    trainer = Trainer(  # which gives each rank its part of the data
        model,
        TrainingArguments(
            arguments.out, num_train_epochs=arguments.epochs, per_device_train_batch_size=16, report_to="none",
            gradient_accumulation_steps=arguments.accumulate, disable_tqdm=True, dataloader_pin_memory=False,
            save_strategy="no", use_cpu=True, dataloader_drop_last=True,
        ),
        train_dataset=[row for index, row in enumerate(rows) if index % 5],
        eval_dataset=rows[::5],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()},
    )  # fmt: skip
    # Not for evaluation: it only keeps DistributedDataParallel away, which would average all gradients.
    trainer.accelerator.prepare_model = partial(trainer.accelerator.prepare_model, evaluation_mode=True)
    trainer.train()
    with optimizer.averaged():  # every rank enters: the model holds the average of all ranks
        trainer.save_model()  # by rank 0
        accuracy = trainer.evaluate()["eval_accuracy"]
    if ps.rank() == 0:
        print(f"test accuracy {accuracy:.1%}")
    optimizer.close()


if __name__ == "__main__":
    main()
