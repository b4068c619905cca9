"""
SASFT: fine-tune while the features of one language are held down in the answers of all others.

    accelerate launch recipes/sasft_code_switching/train.py --config recipes/sasft_code_switching/qwen3-1.7b.yaml

Any field of the four dataclasses may stand in the YAML or on the command line; `--use_peft` trains LoRA adapters.
`sae-posttrain sft --config FILE.yaml` does the same. Copy this file to change more than settings.
"""

from trl import DatasetMixtureConfig, ModelConfig, TrlParser, get_peft_config

from sae_posttrain import SASFTConfig, SASFTTrainer
from sae_posttrain.sft.script import SASFTScriptArguments
from sae_posttrain.training.gate import require_training_rows
from sae_posttrain.training.script import load_data
from sae_posttrain.training.watch.arguments import watch_of

ARGUMENTS = (SASFTScriptArguments, SASFTConfig, ModelConfig, DatasetMixtureConfig)


def main(script_args, training_args, model_args, dataset_args):
    train_dataset = load_data(script_args, dataset_args)[script_args.dataset_train_split]
    require_training_rows(train_dataset, training_args.group_column)
    training_args.model_init_kwargs = {"dtype": model_args.dtype, **(training_args.model_init_kwargs or {})}
    watch = watch_of(script_args)
    trainer = SASFTTrainer(
        model_args.model_name_or_path,
        args=training_args,
        train_dataset=train_dataset,
        peft_config=get_peft_config(model_args),
        callbacks=watch,
    )
    for each in watch:
        each.trainer = trainer
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
