//! What is refused, and what errors and ids say.

use pageloom_block_manager::{BlockManager, Config, ConfigError, Namespace, StepId};

const NS: Namespace = Namespace(0);

#[test]
fn configurations_that_cannot_be_are_refused() {
    let config = |block_size, num_blocks| Config {
        block_size,
        num_blocks,
        ..Config::default()
    };
    let refused = |c: Config| c.validate().err();
    assert_eq!(refused(config(0, 1)), Some(ConfigError::BlockSize));
    let most = u32::MAX as usize - 1;
    assert_eq!(refused(config(1, most)), None);
    for num_blocks in [0, most + 1] {
        let error = Some(ConfigError::NumBlocks { num_blocks });
        assert_eq!(refused(config(1, num_blocks)), error);
    }
    let host = |num_host_blocks| Config {
        num_host_blocks,
        ..config(1, 1)
    };
    assert_eq!(refused(host(most)), None);
    let error = ConfigError::NumHostBlocks {
        num_host_blocks: most + 1,
    };
    assert_eq!(refused(host(most + 1)), Some(error.clone()));
    assert_eq!(BlockManager::new(host(most + 1)).err(), Some(error));

    // One more than fit the address space, and so many that the product overflows.
    for block_size in [1 << 31, usize::MAX / 8] {
        let too_many = |num_blocks| ConfigError::TooManySlots {
            block_size,
            num_blocks,
        };
        let device = config(block_size, 1 << 30);
        assert_eq!(refused(device), Some(too_many(1 << 30)));
        let host = Config {
            num_host_blocks: 1 << 30,
            ..config(block_size, 1)
        };
        assert_eq!(refused(host), Some(too_many(1 << 30)));
    }
}

#[test]
fn errors_and_ids_say_what_they_are() {
    let error = |config: Config| config.validate().unwrap_err().to_string();
    let config = |block_size, num_blocks, num_host_blocks| Config {
        block_size,
        num_blocks,
        num_host_blocks,
        ..Config::default()
    };
    assert_eq!(
        error(config(0, 1, 0)),
        "block_size is 0; a block holds at least one token"
    );
    assert_eq!(
        error(config(1, 0, 0)),
        "num_blocks is 0; it must be between 1 and 4294967294"
    );
    assert_eq!(
        error(config(1, 1, 4_294_967_295)),
        "num_host_blocks is 4294967295; it must be at most 4294967294"
    );
    assert_eq!(
        error(config(1 << 62, 4, 0)),
        "4 blocks of 4611686018427387904 tokens do not fit the address space"
    );

    let mut m = BlockManager::new(config(1, 3, 2)).unwrap();
    let (a, _) = m.open(&[], NS);
    let error = m.reserve(a, 4).unwrap_err().to_string();
    assert_eq!(error, "out of device blocks: 4 needed, 3 available");
    m.reserve(a, 3).unwrap();
    m.commit(a, &[1, 2, 3]);
    let error = m.swap_out(&[a]).unwrap_err().to_string();
    assert_eq!(error, "out of host blocks: 3 needed, 2 available");

    let last = m.blocks(a)[2];
    assert_eq!((last.to_string().as_str(), u32::from(last)), ("2", 2));
    assert_eq!(a.to_string(), "0#0");
    m.truncate(a, 2);
    m.swap_out(&[a]).unwrap();
    for (i, swap) in (0u32..).zip(m.seal(StepId(0)).swap_outs) {
        let name = format!("host {i}");
        assert_eq!((swap.dst.to_string(), u32::from(swap.dst)), (name, i));
        assert_eq!(swap.dst.index(), i as usize);
    }
}
