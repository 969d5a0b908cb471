export const settings = {
  setting: {
    method: {
      label: '방법',
      help: '학습 대상과 데이터 종류',
    },
    num_train_epochs: {
      label: '에폭',
      help: '각 행을 학습하는 횟수',
    },
    learning_rate: {
      label: '학습률',
      help: '어댑터는 1e-4–5e-4, 전체 가중치는 1e-5가 적당합니다',
    },
    per_device_train_batch_size: {
      label: '배치 크기',
      help: '한 번에 처리하는 시퀀스 수, 메모리를 사용합니다',
    },
    max_seq_length: {
      label: '최대 시퀀스 길이',
      help: '토큰 단위, 더 긴 행은 잘립니다',
    },
    r: {
      label: '랭크',
      help: '어댑터의 크기',
    },
    lora_alpha: {
      label: '알파',
      help: '어댑터의 가중치, 보통 랭크의 두 배',
    },
    beta: {
      label: '베타',
      help: '학습한 모델이 기본 모델에 머무는 정도',
    },
    loss_type: {
      label: '손실 함수',
      help: '쌍을 비교하는 방식',
    },
    max_steps: {
      label: '최대 스텝',
      help: '-1이면 에폭에 따릅니다',
    },
    gradient_accumulation_steps: {
      label: '그래디언트 누적',
      help: '옵티마이저 스텝당 배치 수',
    },
    lr_scheduler_type: {
      label: '스케줄',
      help: '학습률이 줄어드는 방식',
    },
    warmup_ratio: {
      label: '워밍업',
      help: '전체 스텝 대비 비율, 0–1',
    },
    weight_decay: {
      label: '가중치 감쇠',
      help: '가중치를 0에 가깝게 유지합니다',
    },
    max_grad_norm: {
      label: '클리핑',
      help: '최대 그래디언트 노름, 0이면 사용하지 않습니다',
    },
    optim: {
      label: '옵티마이저',
      help: '8비트는 메모리를 적게 사용합니다',
    },
    base_dtype: {
      label: '고정 가중치의 정밀도',
      help: '16비트는 메모리를 절반만 사용합니다',
    },
    eval_steps: {
      label: '평가 주기',
      help: '스텝 단위, 0이면 시작과 끝에만',
    },
    save_steps: {
      label: '체크포인트 주기',
      help: '스텝 단위, 0이면 끝에만',
    },
    save_total_limit: {
      label: '체크포인트 보관 수',
      help: '시도마다',
    },
    early_stopping_patience: {
      label: '조기 종료 기준',
      help: '손실이 개선되지 않아도 기다리는 평가 횟수, 0이면 종료하지 않습니다',
    },
    seed: {
      label: '시드',
      help: '같은 시드는 같은 결과를 냅니다',
    },
    lora_dropout: {
      label: '드롭아웃',
      help: '어댑터에 적용, 0–1',
    },
    target_modules: {
      label: '대상 모듈',
      help: 'all-linear 또는 쉼표로 구분한 이름: q_proj, v_proj',
    },
    load_best_model_at_end: {
      label: '최적 체크포인트 사용',
      help: '검증 손실이 가장 낮은 체크포인트를 결과로 사용합니다',
    },
    packing: {
      label: '패킹',
      help: '여러 행을 한 시퀀스에 담습니다. 짧은 행에서 빠릅니다',
    },
    gradient_checkpointing: {
      label: '활성값 재계산',
      help: '메모리는 줄고 시간은 늘어납니다',
    },
    shuffle: {
      label: '행 섞기',
      help: '에폭마다 다른 순서로',
    },
    group_by_length: {
      label: '길이별로 묶기',
      help: '비슷한 길이의 행을 한 스텝에 담습니다',
    },
    use_rslora: {
      label: 'rsLoRA',
      help: '랭크의 제곱근으로 조정, 큰 랭크에 적합합니다',
    },
    use_dora: {
      label: 'DoRA',
      help: '크기와 방향을 따로 학습합니다',
    },
  },
  settings: {
    appearance: '화면',
    audit: '감사 로그',
    keys: 'API 키',
    language: '언어',
    theme: '테마',
    webhooks: '웹훅',
  },
  keys: {
    active: '사용 중',
    create: '키 만들기',
    everything: '사용자의 모든 권한',
    expired: '만료됨',
    expires: '만료',
    lastUsed: '최근 사용',
    made: '새 키',
    never: '없음',
    new: '새 키',
    newLead: '프로그램이나 다른 머신에서 사용합니다. 필요한 권한만 부여하세요.',
    none: '키가 없습니다',
    prefix: '시작 문자',
    revoke: '폐기',
    revokeFailed: '키를 폐기하지 못했습니다',
    revokeLead: '이 키의 다음 요청부터 거부됩니다. 되돌릴 수 없습니다.',
    revokeOf: '{{name}} 폐기',
    revokeTitle: '{{name}} 키를 폐기할까요?',
    revoked: '폐기됨',
    scopes: '권한 범위',
    this: '현재 세션',
  },
  secret: {
    copied: '복사됨',
    copy: '복사',
    done: '보관했습니다',
    once: '지금 한 번만 표시됩니다. 닫기 전에 보관하세요.',
  },
  webhooks: {
    again: '다시 보내기',
    answer: '응답',
    attempts: '시도',
    create: '웹훅 만들기',
    deleteTitle: '이 웹훅을 삭제할까요?',
    deliveries: '전송 기록',
    disable: '비활성화',
    disabled: '비활성',
    enable: '활성화',
    enabled: '활성',
    event: '이벤트',
    events: '이벤트(선택하지 않으면 전체)',
    everything: '모든 이벤트',
    failed: '처리하지 못했습니다',
    new: '새 웹훅',
    newLead: '서명된 메시지를 이 주소로 보냅니다(Standard Webhooks).',
    noDeliveries: '아직 전송된 메시지가 없습니다',
    none: '웹훅이 없습니다',
    noneLead: '작업이 끝나거나 실패하거나 예산에 도달하면 다른 프로그램에 알립니다.',
    rotate: '비밀 값 교체',
    secret: '서명 비밀 값',
    test: '테스트 전송',
  },
  delivery: {
    pending: '대기 중',
    delivered: '전송됨',
    failed: '실패',
  },
  audit: {
    from: '위치',
    none: '기록이 없습니다',
    on: '대상',
    outcome: '결과',
    what: '동작',
    when: '시각',
    who: '사용자',
  },
  outcome: {
    done: '완료',
    refused: '거부됨',
  },
}
