export const settings = {
  setting: {
    method: {
      label: 'Method',
      help: 'What is trained, and on what kind of rows',
    },
    num_train_epochs: {
      label: 'Epochs',
      help: 'How often every row is seen',
    },
    learning_rate: {
      label: 'Learning rate',
      help: '1e-4 to 5e-4 suits adapters, 1e-5 all weights',
    },
    per_device_train_batch_size: {
      label: 'Batch size',
      help: 'Sequences at once; costs memory',
    },
    max_seq_length: {
      label: 'Longest sequence',
      help: 'In tokens; longer rows are cut',
    },
    r: {
      label: 'Rank',
      help: 'Size of the adapter',
    },
    lora_alpha: {
      label: 'Alpha',
      help: 'Weight of the adapter, often twice the rank',
    },
    beta: {
      label: 'Beta',
      help: 'How closely the tuned model keeps to the base model',
    },
    loss_type: {
      label: 'Loss',
      help: 'How pairs are compared',
    },
    max_steps: {
      label: 'Most steps',
      help: '-1 leaves it to the epochs',
    },
    gradient_accumulation_steps: {
      label: 'Accumulated batches',
      help: 'Batches per optimizer step',
    },
    lr_scheduler_type: {
      label: 'Schedule',
      help: 'How the learning rate falls',
    },
    warmup_ratio: {
      label: 'Warm-up',
      help: 'Share of the steps, 0 to 1',
    },
    weight_decay: {
      label: 'Weight decay',
      help: 'Pulls weights towards zero',
    },
    max_grad_norm: {
      label: 'Clipping',
      help: 'Largest gradient norm; 0 turns it off',
    },
    optim: {
      label: 'Optimizer',
      help: 'The 8-bit one needs less memory',
    },
    base_dtype: {
      label: 'Precision of frozen weights',
      help: '16 bits take half the memory',
    },
    eval_steps: {
      label: 'Evaluate every',
      help: 'Steps; 0 only at start and end',
    },
    save_steps: {
      label: 'Checkpoint every',
      help: 'Steps; 0 only at the end',
    },
    save_total_limit: {
      label: 'Checkpoints kept',
      help: 'Of one attempt',
    },
    early_stopping_patience: {
      label: 'Patience',
      help: 'Evaluations without a better loss before it stops; 0 never',
    },
    seed: {
      label: 'Seed',
      help: 'The same seed gives the same run',
    },
    lora_dropout: {
      label: 'Dropout',
      help: 'Of the adapter, 0 to 1',
    },
    target_modules: {
      label: 'Modules',
      help: 'all-linear, or names with commas: q_proj, v_proj',
    },
    load_best_model_at_end: {
      label: 'Keep the best checkpoint',
      help: 'The result is the one with the lowest validation loss',
    },
    packing: {
      label: 'Packing',
      help: 'Several rows in one sequence; faster with short rows',
    },
    gradient_checkpointing: {
      label: 'Recompute activations',
      help: 'Less memory, more time',
    },
    shuffle: {
      label: 'Shuffle rows',
      help: 'In another order every epoch',
    },
    group_by_length: {
      label: 'Group by length',
      help: 'Rows of about the same length in a step',
    },
    use_rslora: {
      label: 'rsLoRA',
      help: 'Scales by the root of the rank; for large ranks',
    },
    use_dora: {
      label: 'DoRA',
      help: 'Trains magnitude and direction apart',
    },
  },
  settings: {
    appearance: 'Appearance',
    audit: 'Audit log',
    keys: 'API keys',
    language: 'Language',
    theme: 'Colours',
    webhooks: 'Webhooks',
  },
  keys: {
    active: 'Active',
    create: 'Create the key',
    everything: 'Everything its user may do',
    expired: 'Expired',
    expires: 'Expires',
    lastUsed: 'Last used',
    made: 'The new key',
    never: 'Never',
    new: 'New key',
    newLead: 'For a program or another machine. Give it no more than it needs.',
    none: 'No keys',
    prefix: 'Begins with',
    revoke: 'Revoke',
    revokeFailed: 'The key could not be revoked',
    revokeLead: 'The next request with it is refused. This cannot be undone.',
    revokeOf: 'Revoke {{name}}',
    revokeTitle: 'Revoke {{name}}?',
    revoked: 'Revoked',
    scopes: 'Scopes',
    this: 'This session',
  },
  secret: {
    copied: 'Copied',
    copy: 'Copy',
    done: 'I have stored it',
    once: 'It is shown only now. Store it before you close this.',
  },
  webhooks: {
    again: 'Send again',
    answer: 'Answer',
    attempts: 'Tries',
    create: 'Create the webhook',
    deleteTitle: 'Delete this webhook?',
    deliveries: 'Deliveries',
    disable: 'Disable',
    disabled: 'Disabled',
    enable: 'Enable',
    enabled: 'Enabled',
    event: 'Event',
    events: 'Events (all when none is chosen)',
    everything: 'All events',
    failed: 'That did not work',
    new: 'New webhook',
    newLead: 'Hone sends signed messages to this address (Standard Webhooks).',
    noDeliveries: 'Nothing was sent yet',
    none: 'No webhooks',
    noneLead: 'They tell another program when a job ends, fails or reaches its budget.',
    rotate: 'New secret',
    secret: 'Signing secret',
    test: 'Send a test',
  },
  delivery: {
    pending: 'Pending',
    delivered: 'Delivered',
    failed: 'Failed',
  },
  audit: {
    from: 'From',
    none: 'No entries',
    on: 'On',
    outcome: 'Outcome',
    what: 'What',
    when: 'When',
    who: 'Who',
  },
  outcome: {
    done: 'Done',
    refused: 'Refused',
  },
}
