"""Trains the base model of the faces template from scratch; ../train_base.py is the command."""
