// Compiled into each library.

// The loader looks for this text in the file before it loads it (kernels/_extension.py).
extern "C" __attribute__((used, visibility("default"))) const char zoominnet_stamp[] =
    "zoominnet library " ZOOMINNET_STAMP;

// So it does for this one, in the library for CUDA: which GPUs it has code for, ascending; for later ones that of the
// last.
#ifdef ZOOMINNET_GPUS
extern "C" __attribute__((used, visibility("default"))) const char zoominnet_gpus[] = "zoominnet gpus " ZOOMINNET_GPUS;
#endif
