"""Digits with the Hugging Face Trainer; every rank is a run of one process to it.

pushsum run -np 4 examples/frameworks/hf_trainer.py
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DistributedSampler
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

import pushsum_opt as ps


class Arguments(TrainingArguments):
    """Rank 0 alone logs and saves; to the Trainer every rank is the only process."""

    @property
    def process_index(self) -> int:
        return ps.rank()

    local_process_index = process_index


class ShardedTrainer(Trainer):
    def _get_train_sampler(self, dataset=None):
        return DistributedSampler(self.train_dataset, num_replicas=ps.size(), rank=ps.rank(), drop_last=True)


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
    parser.add_argument("--resume")
    arguments = parser.parse_args()

    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    rows = [{"images": image, "labels": label} for image, label in zip(images, digits.target, strict=True)]
    model = Digits(PretrainedConfig())
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, staleness=1)
    trainer = ShardedTrainer(
        model,
        Arguments(
            arguments.out, num_train_epochs=arguments.epochs, per_device_train_batch_size=16, report_to="none",
            gradient_accumulation_steps=arguments.accumulate, disable_tqdm=True, dataloader_pin_memory=False,
            save_strategy="epoch" if ps.rank() == 0 else "no",
            seed=42 + ps.rank(),  # dropout differs between ranks
        ),
        train_dataset=[row for index, row in enumerate(rows) if index % 5],
        eval_dataset=rows[::5],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=arguments.resume)
    with optimizer.averaged():  # every rank enters: the model holds the average of all ranks
        trainer.save_model()  # by rank 0
        accuracy = trainer.evaluate()["eval_accuracy"]
    if ps.rank() == 0:
        print(f"test accuracy {accuracy:.1%}")
    optimizer.close()


if __name__ == "__main__":
    main()
