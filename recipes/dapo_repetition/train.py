"""
DAPO in which one rollout of every prompt is steered into endless repetition, so that the model unlearns it.

    accelerate launch recipes/dapo_repetition/train.py --config recipes/dapo_repetition/qwen3-1.7b.yaml

Any field of the four dataclasses may stand in the YAML or on the command line; `--num_steered 0` is plain DAPO.
`sae-posttrain grpo --config FILE.yaml` does the same. Copy this file to change more than settings.
"""

from trl import DatasetMixtureConfig, ModelConfig, TrlParser, get_peft_config

from sae_posttrain import SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.rl.script import SteeredGRPOScriptArguments, load_rewards
from sae_posttrain.training.gate import require_prompt_rows
from sae_posttrain.training.script import load_data
from sae_posttrain.training.watch.arguments import watch_of

ARGUMENTS = (SteeredGRPOScriptArguments, SteeredGRPOConfig, ModelConfig, DatasetMixtureConfig)


def main(script_args, training_args, model_args, dataset_args):
    train_dataset = load_data(script_args, dataset_args)[script_args.dataset_train_split]
    require_prompt_rows(train_dataset)
    training_args.model_init_kwargs = {"dtype": model_args.dtype, **(training_args.model_init_kwargs or {})}
    watch = watch_of(script_args)
    trainer = SteeredGRPOTrainer(
        model_args.model_name_or_path,
        load_rewards(script_args.reward_funcs, training_args, model_args),
        training_args,
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
