"""What foreign records say of models: settings, measured numbers, which file is whose."""
