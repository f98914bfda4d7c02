"""Fine-tunes a checkpoint on any images, and leaves a run folder.

python experiments/finetune.py CHECKPOINT --data folder:photos            # every weight, and a new head
python experiments/finetune.py CHECKPOINT --data folder:photos --method probe        # the head alone
python experiments/finetune.py CHECKPOINT --data folder:photos --method lora --finetune.lora_rank 16
python experiments/finetune.py CHECKPOINT --data folder:photos --finetune.layer_decay 0.75 --finetune.freeze 6
python experiments/finetune.py CHECKPOINT --data folder:photos --model.image_size 384
python experiments/finetune.py --resume runs/finetune-photos-jax          # after a kill; needs the checkpoint no more

CHECKPOINT is a run folder, a .keras file, a checkpoint of timm, transformers or JAX, or a name on the Hugging Face hub.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("finetune")
