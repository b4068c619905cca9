"""
SASFT in ms-swift: copy this file, and name your features.

    swift sft --external_plugins recipes/ms_swift/plugin.py --model Qwen/Qwen3-1.7B-Base --dataset train.jsonl
"""

from sae_posttrain.integrations.ms_swift.plugin import hold_features

hold_features(features="zh-qwen3-1.7b.safetensors", penalty_weight=1.0)
