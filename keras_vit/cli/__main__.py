"""`python -m keras_vit.cli COMMAND`, for launchers that start a module, such as `torchrun -m`."""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main()
