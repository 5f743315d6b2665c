# Stub code: what runs on the application's side of a channel.
#
# Position-independent; copied into a sealed file that every stub process maps at CODE. Three kinds of thread run it:
#
# - The agent, one in each process. It holds everything in registers, has no stack, blocks all signals, and takes its
#   control flow from nothing that the application can write: orders come from a page that is read-only here, and results
#   leave in the registers of a call that the seccomp filter reports to the Sentry.
# - Application threads inside their signal handler. Their memory is the application's to spoil: it spoils itself alone.
# - A thread on its way from the one to the other (thread_child): registers only, until its filter is in place.

# Goes to `otherwise` unless `place` is an address from `first` on and below `last`. Clobbers rax.
.macro unless_within place, first, last, otherwise
    lea rax, [rip + \first]
    cmp \place, rax
    jb \otherwise
    lea rax, [rip + \last]
    cmp \place, rax
    jae \otherwise
.endm

    .section .rodata.casemate_stub, "a"
    .balign 4096
    .globl casemate_stub_start
casemate_stub_start:

# ---------------------------------------------------------------------------------------------------------------------
# The zygote's way out of its old address space. Runs from a temporary copy: rdi = entries in the format of an order
# page. All must succeed. The last has number -1 and the address to go on at.
# ---------------------------------------------------------------------------------------------------------------------
    .globl casemate_stub_boot
casemate_stub_boot:
    mov rbx, rdi
1:  mov rax, [rbx]
    cmp rax, -1
    je 2f
    mov rdi, [rbx + 8]
    mov rsi, [rbx + 16]
    mov rdx, [rbx + 24]
    mov r10, [rbx + 32]
    mov r8, [rbx + 40]
    mov r9, [rbx + 48]
    syscall
    cmp rax, -4096
    ja die
    add rbx, {ORDER_SIZE}
    jmp 1b
2:  xor esp, esp
    jmp [rbx + 8]

# ---------------------------------------------------------------------------------------------------------------------
# The agent.
# ---------------------------------------------------------------------------------------------------------------------
    .globl casemate_stub_zygote
casemate_stub_zygote:
    mov eax, {SYS_SECCOMP}
    mov edi, 1                      # SECCOMP_SET_MODE_FILTER
    mov esi, {LISTENER_FLAGS}
    lea rdx, [rip + casemate_stub_agent_filter]
    syscall
    test rax, rax
    js die
    xor edi, edi
    xor esi, esi
    xor r13d, r13d
    jmp agent_report

# A process that an agent has just cloned. r14 = offset of its order page in the channel file, which its parent has
# left it as descriptor 0. Its first orders are written already.
    .globl casemate_stub_fork_child
casemate_stub_fork_child:
    mov eax, {SYS_MMAP}
    mov rdi, {ORDERS}
    mov esi, 4096
    mov edx, 1                      # PROT_READ
    mov r10d, 0x11                  # MAP_SHARED | MAP_FIXED
    xor r8d, r8d
    mov r9, r14
    syscall
    .globl casemate_stub_fork_map_end
casemate_stub_fork_map_end:
    mov rdi, {ORDERS}
    cmp rax, rdi
    jne die
    jmp agent_obey

# rdi = result of the last call, rsi = index of the entry that failed, or the number of entries, r13 = result of the last
# clone.
agent_report:
    mov rdx, r13
    mov eax, {SYS_NOTIFY}
    syscall
    .globl casemate_stub_notify_end
casemate_stub_notify_end:
    test rax, rax
    js die                          # the Sentry is gone
agent_obey:
    mov rbx, {ORDERS}
    mov rbp, [rbx]                  # entries to do
    xor r12d, r12d                  # index
    xor r13d, r13d
    add rbx, {ORDER_FIRST}
    xor eax, eax
1:  cmp r12, rbp
    jae 2f
    mov r15, [rbx + 56]             # where a child goes on
    mov r14, [rbx + 64]             # its argument
    mov rdi, [rbx + 8]
    mov rsi, [rbx + 16]
    mov rdx, [rbx + 24]
    mov r10, [rbx + 32]
    mov r8, [rbx + 40]
    mov r9, [rbx + 48]
    mov rax, [rbx]
    cmp rax, {ATOMIC}
    jae agent_atomic
    syscall
    .globl casemate_stub_call_end
casemate_stub_call_end:
    test r15, r15
    jz 3f
    mov r13, rax
    test rax, rax
    jnz 3f
    jmp r15
agent_done:
3:  cmp rax, -4096
    ja 2f
    inc r12
    add rbx, {ORDER_SIZE}
    jmp 1b
2:  mov rdi, rax
    mov rsi, r12
    jmp agent_report

# No call: an atomic operation on the word of the application at rdi. esi = operand, edx = the value that is to be there. The
# order before this one has made the page writable, and none but orders change mappings. The old value is reported as the
# result of a clone is.
agent_atomic:
    sub eax, {ATOMIC} + {ATOMIC_STORE}
    je 1f
    sub eax, {ATOMIC_ADD} - {ATOMIC_STORE}
    je 2f
    sub eax, {ATOMIC_EXCHANGE} - {ATOMIC_ADD}
    je 3f
    mov ecx, eax
    mov r10d, {ATOMIC_TRIES}        # the application may change the word as fast as it can
    mov eax, [rdi]
4:  mov r8d, eax
    cmp ecx, {ATOMIC_AND} - {ATOMIC_EXCHANGE}
    je 5f
    ja 6f
    or r8d, esi
    jmp 7f
5:  and r8d, esi
    jmp 7f
6:  xor r8d, esi
7:  lock cmpxchg [rdi], r8d
    je 8f
    dec r10d
    jnz 4b
    mov rax, {EAGAIN}
    jmp agent_done
1:  mov eax, esi
    xchg [rdi], eax
    jmp 8f
2:  mov eax, esi
    lock xadd [rdi], eax
    jmp 8f
3:  mov eax, edx
    lock cmpxchg [rdi], esi
8:  mov r13d, eax
    xor eax, eax
    jmp agent_done

die:
    mov eax, {SYS_EXIT_GROUP}
    mov edi, 70
    syscall
    .globl casemate_stub_exit_end
casemate_stub_exit_end:
    ud2

# ---------------------------------------------------------------------------------------------------------------------
# A new application thread. r14 = its channel.
# ---------------------------------------------------------------------------------------------------------------------
    .globl casemate_stub_thread_child
casemate_stub_thread_child:
    mov rbx, r14
    mov eax, {SYS_SECCOMP}
    mov edi, 1
    mov esi, {FILTER_FLAGS}
    lea rdx, [rip + casemate_stub_thread_filter]
    syscall
    .globl casemate_stub_thread_filter_end
casemate_stub_thread_filter_end:
    test rax, rax
    jnz die
    jmp wait_for_run

# ---------------------------------------------------------------------------------------------------------------------
# The signal handler of application threads: rdi = signal, rsi = siginfo, rdx = ucontext, stack in the channel.
# ---------------------------------------------------------------------------------------------------------------------
    .globl casemate_stub_handler
casemate_stub_handler:
    mov rbx, rsp
    and rbx, {SLOT_MASK}
    cmp edi, {SIGSYS}
    jne not_a_call
    cmp dword ptr [rbx + {IN_CLOCK}], 0
    jne clock_refused
    xor r12d, r12d
    mov eax, [rdx + {UC_RAX}]
    cmp eax, {STAGE_CALLS}
    jae trapped
    lea r8, [rip + casemate_stub_stage_table]
    mov r12d, [r8 + rax * 4]
    test r12d, {IS_RESIDENT}
    jnz resident
trapped:
    rdfsbase rax
    mov [rbx + {FS_BASE}], rax
    rdgsbase rax
    mov [rbx + {GS_BASE}], rax
    mov [rbx + {SIGNAL}], edi
    mov [rbx + {CONTEXT}], rdx
    xor ecx, ecx
    mov [rbx + {STAGE} + 8], rcx
    mov [rbx + {STAGE} + 24], rcx
    test r12d, r12d
    jnz stage

# While the thread rests here, signals that come late go below every frame that it may return to.
post:
    lea rsp, [rbx + {CALL_STACK}]
    mov eax, {POSTED}
    xchg [rbx + {STATE}], eax
    cmp dword ptr [rbx + {SLEEPERS}], 0
    jne wake_worker
wait_for_run:
    cmp dword ptr [rbx + {STATE}], {RUN}
    je resume
    mov r9d, [rbx + {SPIN}]
    test r9d, r9d
    jz go_to_sleep
    rdtsc
    mov r8d, eax
1:  cmp dword ptr [rbx + {STATE}], {RUN}
    je resume
    pause
    cmp dword ptr [rbx + {SPIN}], 0
    je go_to_sleep
    rdtsc
    sub eax, r8d
    cmp eax, r9d
    jb 1b
go_to_sleep:
    mov eax, 1
    xchg [rbx + {ASLEEP}], eax
    cmp dword ptr [rbx + {STATE}], {RUN}
    je 1f
    mov eax, {SYS_FUTEX}
    lea rdi, [rbx + {ASLEEP}]
    xor esi, esi                    # FUTEX_WAIT
    mov edx, 1
    xor r10d, r10d
    syscall
    .globl casemate_stub_futex_wait_end
casemate_stub_futex_wait_end:
    cmp dword ptr [rbx + {STATE}], {RUN}
    jne go_to_sleep
1:  mov dword ptr [rbx + {ASLEEP}], 0
resume:
    cmp dword ptr [rbx + {SAVE}], 0
    jne save
    mov r12d, [rbx + {GIVEN_COUNT}]
    test r12d, r12d
    jnz deliver
go_back:
    lea r8, [rbx + {CALL_FRAME}]
leave_start:                        # from here on a kick goes to kicked
    cmp dword ptr [rbx + {KICKED}], 0
    jne kicked
    mov rax, [rbx + {FS_BASE}]
    wrfsbase rax
    mov rax, [rbx + {GS_BASE}]
    wrgsbase rax
    cmp r8, [rbx + {CONTEXT}]
    je leave_call
    mov rsp, [rbx + {CONTEXT}]
    mov eax, {SYS_RT_SIGRETURN}
    syscall
    .globl casemate_stub_sigreturn_end
casemate_stub_sigreturn_end:
    ud2
# Out of a call of patched code, without the kernel: the extended state was left alone, and gs is the channel.
leave_call:
    lea rsp, [rbx + {CALL_STACK}]
    push qword ptr [r8 + {UC_REGS} + 17 * 8]
    popfq
    mov r9, [r8 + {UC_REGS} + 1 * 8]
    mov r10, [r8 + {UC_REGS} + 2 * 8]
    mov r11, [r8 + {UC_REGS} + 3 * 8]
    mov r12, [r8 + {UC_REGS} + 4 * 8]
    mov r13, [r8 + {UC_REGS} + 5 * 8]
    mov r14, [r8 + {UC_REGS} + 6 * 8]
    mov r15, [r8 + {UC_REGS} + 7 * 8]
    mov rdi, [r8 + {UC_REGS} + 8 * 8]
    mov rsi, [r8 + {UC_REGS} + 9 * 8]
    mov rbp, [r8 + {UC_REGS} + 10 * 8]
    mov rbx, [r8 + {UC_REGS} + 11 * 8]
    mov rdx, [r8 + {UC_REGS} + 12 * 8]
    mov rax, [r8 + {UC_REGS} + 13 * 8]
    mov rcx, [r8 + {UC_REGS} + 14 * 8]
    mov rsp, [r8 + {UC_REGS} + 15 * 8]
    mov r8, [r8 + {UC_REGS} + 0 * 8]
    jmp qword ptr gs:[{CALL_FRAME} + {UC_REGS} + 16 * 8]
leave_end:

# A kick that came while the thread was on its way out of the stub, or waited to be set running: what it was about to
# return to is what was interrupted.
kicked:
    mov dword ptr [rbx + {KICKED}], 0
    mov dword ptr [rbx + {SIGNAL}], {KICK}
    xor ecx, ecx
    mov [rbx + {STAGE} + 8], rcx
    mov [rbx + {STAGE} + 24], rcx
    jmp post

# ---------------------------------------------------------------------------------------------------------------------
# Calls of patched code: no signal, no kernel. rax = number, rcx = where to go on, as after a `syscall` instruction; r11
# is free, as it is after one. What the code cannot do it leaves to the instruction itself, which stands before rcx.
#
# Signals are not blocked here. A kick that arrives before the resident path has been chosen is noted and left: the
# trap to come ends in the Sentry, which knows of the kick. From resident_start on it goes back to the instruction, as it
# does from clock_start on; before that, the clock path finds what was noted.
# ---------------------------------------------------------------------------------------------------------------------
    .globl casemate_stub_call
casemate_stub_call:
    rdgsbase r11
    cmp r11, [rip + first_channel]
    jb refuse_call
    cmp r11, [rip + last_channel]
    ja refuse_call
    cmp dword ptr [r11 + {TAKES_CALLS}], 0
    je refuse_call
    cmp eax, {STAGE_CALLS}
    jae refuse_call
    mov eax, eax
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 11 * 8], rbx
    lea rbx, [rip + casemate_stub_stage_table]
    mov ebx, [rbx + rax * 4]
    test ebx, {IS_RESIDENT}
    jnz resident_call
take_call:
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 0 * 8], r8
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 1 * 8], r9
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 2 * 8], r10
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 4 * 8], r12
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 5 * 8], r13
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 6 * 8], r14
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 7 * 8], r15
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 8 * 8], rdi
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 9 * 8], rsi
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 10 * 8], rbp
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 12 * 8], rdx
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 13 * 8], rax
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 14 * 8], rcx
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 15 * 8], rsp
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 16 * 8], rcx
    mov [r11 + {CALL_FRAME} + {INFO_SYSCALL}], eax
    lea rsp, [r11 + {CALL_STACK}]
    pushfq
    pop rsi
    cld
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 3 * 8], rsi
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 17 * 8], rsi
    mov r12d, ebx
    mov rbx, r11
    lea rdx, [rbx + {CALL_FRAME}]
    rdfsbase rax
    mov [rbx + {FS_BASE}], rax
    mov [rbx + {GS_BASE}], rbx
    mov dword ptr [rbx + {SIGNAL}], {SIGSYS}
    mov [rbx + {CONTEXT}], rdx
    xor ecx, ecx
    mov [rbx + {STAGE} + 8], rcx
    mov [rbx + {STAGE} + 24], rcx
    test r12d, {OF_ANY}
    jnz stage                       # which may not lead to the Sentry
    mov [rbx + {KICKED}], ecx       # the Sentry has the kicks so far, and looks for them before it sets the thread running
    test r12d, r12d
    jnz stage
    jmp post
resident_call:
resident_start:
    cmp dword ptr [r11 + {KICKED}], 0
    jne take_trap
    shr ebx, 8
    bt dword ptr [r11 + {RESIDENT}], ebx
    jnc take_trap
    cmp ebx, {CLOCK}
    je clock_call
    test ebx, ebx
    jz 1f
    mov ebx, [r11 + {ANSWERS} + rbx * 4]
2:  xchg rbx, r11
    mov rbx, [rbx + {CALL_FRAME} + {UC_REGS} + 11 * 8]
    mov eax, r11d
resident_end:
    jmp rcx
# sched_yield: one in so many goes to the host, by the instruction itself. Who waits in a loop comes to that one soon.
1:  inc dword ptr [r11 + {YIELDS}]
    test dword ptr [r11 + {YIELDS}], {YIELDS_KEPT}
    jz take_trap
    xor eax, eax
yield_answered:
    mov rbx, [r11 + {CALL_FRAME} + {UC_REGS} + 11 * 8]
yield_end:
    jmp rcx
# clock_gettime by the host's vDSO, into the channel first: a bad address is for the Sentry to answer. The clocks that it
# reads without a call are 0, 1 and 4 to 7. While it runs, kicks are noted and left.
clock_call:
    cmp edi, 7
    ja take_trap
    mov ebx, 0xf3
    bt ebx, edi
    jnc take_trap
    cmp qword ptr [rip + casemate_stub_vdso_clock], 0
    je take_trap
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 0 * 8], r8
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 1 * 8], r9
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 2 * 8], r10
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 8 * 8], rdi
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 9 * 8], rsi
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 12 * 8], rdx
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 14 * 8], rcx
    mov [r11 + {CALL_FRAME} + {UC_REGS} + 15 * 8], rsp
    mov dword ptr [r11 + {IN_CLOCK}], 1
    mov rbx, r11
    lea rsp, [rbx + {CALL_STACK}]
    lea rsi, [rbx + {CLOCK_RESULT}]
    call qword ptr [rip + casemate_stub_vdso_clock]
    mov r11, rbx
    mov dword ptr [r11 + {IN_CLOCK}], 0
    mov r8, [r11 + {CALL_FRAME} + {UC_REGS} + 0 * 8]
    mov r9, [r11 + {CALL_FRAME} + {UC_REGS} + 1 * 8]
    mov r10, [r11 + {CALL_FRAME} + {UC_REGS} + 2 * 8]
    mov rdi, [r11 + {CALL_FRAME} + {UC_REGS} + 8 * 8]
    mov rsi, [r11 + {CALL_FRAME} + {UC_REGS} + 9 * 8]
    mov rdx, [r11 + {CALL_FRAME} + {UC_REGS} + 12 * 8]
    mov rcx, [r11 + {CALL_FRAME} + {UC_REGS} + 14 * 8]
    mov rsp, [r11 + {CALL_FRAME} + {UC_REGS} + 15 * 8]
    test eax, eax
    jnz clock_trap
clock_start:                        # from here on a kick goes back to the instruction
    cmp dword ptr [r11 + {KICKED}], 0
    jne clock_trap
    mov rax, [r11 + {CLOCK_RESULT}]
    mov [rsi], rax
    mov rax, [r11 + {CLOCK_RESULT} + 8]
    mov [rsi + 8], rax
    mov rbx, [r11 + {CALL_FRAME} + {UC_REGS} + 11 * 8]
    xor eax, eax
clock_end:
    jmp rcx
clock_trap:
    mov eax, {SYS_CLOCK_GETTIME}
take_trap:
    mov rbx, [r11 + {CALL_FRAME} + {UC_REGS} + 11 * 8]
refuse_call:
    sub rcx, 2
    jmp rcx

# The flag is left alone: by now the trap may be taken, the thread set running, and the flag set anew by a worker that is
# about to sleep. The Sentry clears it when it sets the thread running.
#
# A thread that is to spin needs a worker on another CPU: a free one, which the host wakes where nothing runs. One that
# sleeps needs the worker of its own CPU, which runs as soon as the thread does not, and need not even be woken if it is about to
# sleep. If there is none of the kind, any will do.
wake_worker:
    mov rdi, {WORKERS}
    mov ecx, {WORKER_ASLEEP}
    cmp dword ptr [rbx + {SPIN}], 0
    je 2f
    mov eax, {FREE_WORKERS}
1:  cmp [rdi], ecx
    je wake_this
    add rdi, 1 << {WORKER_SHIFT}
    dec eax
    jnz 1b
    jmp wake_any
2:  mov eax, {CPU_SEGMENT}
    lsl eax, eax
    jnz wake_any
    and eax, 0xfff
    cmp eax, {NR_CPU_WORKERS}
    jae wake_any
    add eax, {FREE_WORKERS}
    shl eax, {WORKER_SHIFT}
    add rdi, rax
    cmp [rdi], ecx
    jb go_to_sleep
    je wake_this
wake_any:
    lea rdi, [rbx + {STATE}]
wake_this:
    mov eax, {SYS_FUTEX}
    mov esi, 1                      # FUTEX_WAKE
    mov edx, 1
    syscall
    .globl casemate_stub_futex_wake_end
casemate_stub_futex_wake_end:
    jmp wait_for_run

# The vDSO makes the call after all: the instruction of the program is to make it.
clock_refused:
    mov qword ptr [rdx + {UC_RAX}], {ENOSYS}
    mov rsp, rdx
    jmp leave_handler

# A call that the thread may answer from what the Sentry has left in its channel. Not so for the same number of the 32-bit
# table, which is a call of another name.
resident:
    mov ecx, r12d
    shr ecx, 8
    xor r12d, r12d
    cmp dword ptr [rsi + {INFO_ARCH}], {ARCH}
    jne trapped
    cmp ecx, {CLOCK}
    je trapped
    mov eax, [rbx + {RESIDENT}]
    bt eax, ecx
    jnc trapped
    test ecx, ecx
    jz yield_cpu
    mov eax, [rbx + {ANSWERS} + rcx * 4]
answered:
    mov [rdx + {UC_RAX}], rax
    mov rsp, rdx
    jmp leave_handler
yield_cpu:
    mov r13, rdx
    mov eax, {SYS_YIELD}
    syscall
    .globl casemate_stub_yield_end
casemate_stub_yield_end:
    mov rdx, r13
    xor eax, eax
    jmp answered

# The Sentry wants the thread to stop. Inside the stub that is for the stub to arrange.
kick:
    cmp dword ptr [rbx + {IN_CLOCK}], 0
    jne 4f
    mov r8, [rdx + {UC_RIP}]
    unless_within r8, casemate_stub_start, casemate_stub_end, other_signal
    lea rax, [rip + resident_end]
    cmp r8, rax
    je 3f
    lea rax, [rip + yield_end]
    cmp r8, rax
    je 3f
    lea rax, [rip + clock_end]
    cmp r8, rax
    je 3f
    unless_within r8, clock_start, clock_end, 1f
    mov qword ptr [rdx + {UC_RAX}], {SYS_CLOCK_GETTIME}
    jmp 2f
1:  unless_within r8, resident_start, yield_end, 1f
    lea rax, [rip + yield_answered]
    cmp r8, rax
    jb 2f
    mov qword ptr [rdx + {UC_RAX}], {SYS_YIELD}
    jmp 2f
1:  unless_within r8, leave_start, leave_end, 4f
    lea rax, [rip + kicked]
    mov [rdx + {UC_RIP}], rax
    mov [rdx + {UC_REGS} + 11 * 8], rbx
    jmp 5f
4:  mov dword ptr [rbx + {KICKED}], 1
5:  mov rsp, rdx
    jmp leave_handler
2:  mov rax, [rbx + {CALL_FRAME} + {UC_REGS} + 11 * 8]
    mov [rdx + {UC_REGS} + 11 * 8], rax
    mov rax, [rdx + {UC_REGS} + 14 * 8]
    sub rax, 2
    mov [rdx + {UC_RIP}], rax
    jmp other_signal
3:  mov rax, [rdx + {UC_REGS} + 14 * 8]
    mov [rdx + {UC_RIP}], rax
    jmp other_signal

# A signal that is no system call. A fault of the copies below is mended here and never seen by the Sentry.
not_a_call:
    cmp edi, {KICK}
    je kick
    mov r8, [rdx + {UC_RIP}]
    lea r9, [rip + clock_trap]
    unless_within r8, clock_start, clock_end, 1f
    jmp 3f
1:  lea r9, [rip + not_known]
    unless_within r8, action_start, action_end, 1f
    jmp 3f
1:  unless_within r8, hand_start, hand_end, 2f
    jmp 3f
2:  lea r9, [rip + copy_failed]
    unless_within r8, copy_start, copy_end, other_signal
3:  mov [rdx + {UC_RIP}], r9
    mov rsp, rdx
leave_handler:
    mov eax, {SYS_RT_SIGRETURN}
    syscall
    .globl casemate_stub_sigreturn2_end
casemate_stub_sigreturn2_end:
    ud2
other_signal:
    mov dword ptr [rbx + {IN_CLOCK}], 0
    rdfsbase rax
    mov [rbx + {FS_BASE}], rax
    rdgsbase rax
    mov [rbx + {GS_BASE}], rax
    mov [rbx + {SIGNAL}], edi
    mov [rbx + {CONTEXT}], rdx
    xor ecx, ecx
    mov [rbx + {STAGE} + 8], rcx
    mov [rbx + {STAGE} + 24], rcx
    jmp post

# ---------------------------------------------------------------------------------------------------------------------
# Arguments that travel with the trap. r12d = two descriptions of 16 bits; rdx = ucontext.
# ---------------------------------------------------------------------------------------------------------------------
stage:
    mov r8d, r12d
    mov r13, rdx
    cmp r12d, {OF_FILE}
    je at_hand
    lea r14, [rbx + {STAGE}]
    lea r15, [rbx + {STAGE_DATA}]
    lea r10, [rip + argument_offsets]
stage_piece:
    mov eax, r12d
    and eax, 7
    movzx ecx, byte ptr [r10 + rax]
    mov rsi, [r13 + rcx]            # where it is
    movzx ecx, byte ptr [r10 + rax + 1]
    mov r9, [r13 + rcx]             # the argument after it
    cmp rsi, 4096
    jb stage_next
    mov r11, rsi
    mov rdi, r15
    mov eax, r12d
    shr eax, 3
    and eax, 3
    mov ecx, r12d
    shr ecx, 8
    and ecx, 0xff
    cmp eax, 2
    jb stage_string
    ja stage_fixed
    cmp r9, {STAGE_MAX}
    ja stage_next
    shl r9, cl
    cmp r9, {STAGE_MAX}
    ja stage_next
    mov ecx, r9d
stage_fixed:
    mov r9d, ecx
copy_start:
    rep movsb
    jmp stage_done
stage_string:
    xor r9d, r9d
1:  mov al, [rsi + r9]
    mov [rdi + r9], al
    inc r9d
    test al, al
    jz stage_done
    cmp r9d, 256
    jb 1b
stage_done:
    mov [r14], r11
    mov [r14 + 8], r9
    jmp stage_next
# The extended state, of which a call of patched code has left no copy.
save:
    mov rdi, [rbx + {SAVE_ADDRESS}]
    xor eax, eax
    lea r8, [rdi + 512]
    mov ecx, 8
1:  mov [r8], rax
    add r8, 8
    dec ecx
    jnz 1b
    mov eax, -1
    mov edx, -1
    xsave64 [rdi]
    mov dword ptr [rbx + {SAVE}], 0
    jmp post
# Results of a call, to be copied to the application before it goes on. r12d = pieces.
deliver:
    lea r14, [rbx + {GIVEN}]
    lea rsi, [rbx + {GIVEN_DATA}]
1:  mov rdi, [r14]
    mov rcx, [r14 + 8]
    rep movsb
    add r14, 16
    dec r12d
    jnz 1b
    mov dword ptr [rbx + {GIVEN_COUNT}], 0
    jmp go_back
copy_end:

copy_failed:
    cmp dword ptr [rbx + {GIVEN_COUNT}], 0
    jne 2f
    cmp dword ptr [rbx + {SAVE}], 0
    jne 1f
stage_next:
    add r14, 16
    add r15, {STAGE_MAX}
    shr r12d, 16
    jnz stage_piece
    and r8d, {OF_ANY}
    jz post
    cmp r8d, {OF_FILE}
    jb directory
    je at_hand
    jmp action
1:  mov dword ptr [rbx + {SAVE}], 0
    jmp post
2:  mov dword ptr [rbx + {GIVEN_COUNT}], 0
    mov dword ptr [rbx + {SIGNAL}], {UNDELIVERED}
    jmp post

# readlink of a path that may be in the table of directories. A kick meanwhile is noted, and found on the way out. The number
# may be of the 32-bit table. The application may have alignment checked: words are loaded where they are aligned.
directory:
    test dword ptr [rbx + {RESIDENT}], {DIRECTORY}
    jz not_known
    cmp dword ptr [r13 + {UC_INFO_ARCH}], {ARCH}
    jne not_known
    mov ecx, [rbx + {STAGE} + 8]
    lea eax, [rcx - 2]
    cmp eax, {KNOWN_MAX} - 2
    ja not_known
    cmp byte ptr [rbx + {STAGE_DATA}], 47
    jne not_known
    mov r11d, ecx
    mov edx, ecx
    and edx, -8
    mov rax, [rbx + rdx + {STAGE_DATA} - 8]
    mov rdx, [rbx + rdx + {STAGE_DATA}]
    shl ecx, 3                      # of which shifts take the lower six bits
    shrd rax, rdx, cl               # the last eight bytes
    add rax, r11
    mov rdx, {KNOWN_MIX}
    imul rax, rdx
    shr rax, {KNOWN_SHIFT}
    shl eax, {KNOWN_SET_SHIFT}
    lea r9, [rbx + rax + {KNOWN}]
    mov rdx, {EPOCH}
    mov rdx, [rdx]
    mov r10d, {KNOWN_WAYS}
1:  cmp [r9], rdx
    jne 2f
    cmp [r9 + {KNOWN_LEN}], r11d
    jne 2f
    mov ecx, r11d
    lea rsi, [r9 + {KNOWN_PATH}]
    lea rdi, [rbx + {STAGE_DATA}]
    repe cmpsb
    je 3f
2:  add r9, {KNOWN_ENTRY}
    dec r10d
    jnz 1b
not_known:
    mov dword ptr [rbx + {KICKED}], 0
    jmp post
3:  mov qword ptr [r13 + {UC_RAX}], {EINVAL}
    jmp go_back

# rt_sigaction of a signal whose action nobody has set: one that asks for it, or sets it to the default with what others were set
# to since the Sentry last looked, which then learns of it. A kick meanwhile is noted, and the number may be of the 32-bit
# table, as above. Where the old action cannot be written as it is, the Sentry finds out what to say.
action:
    test dword ptr [rbx + {RESIDENT}], {ACTION}
    jz not_known
    cmp dword ptr [r13 + {UC_INFO_ARCH}], {ARCH}
    jne not_known
    cmp qword ptr [r13 + {UC_REGS} + 2 * 8], 8      # bytes of a mask
    jne not_known
    mov ecx, [r13 + {UC_REGS} + 8 * 8]
    dec ecx
    cmp ecx, 63
    ja not_known
    mov rax, [rbx + {UNTOUCHED}]
    bt rax, rcx
    jnc not_known
    mov rsi, [r13 + {UC_REGS} + 9 * 8]              # the new action
    test rsi, rsi
    jz 1f
    mov rax, {MAY_DEFAULT}
    bt rax, rcx
    jnc not_known
    cmp rsi, [rbx + {STAGE}]
    jne not_known
    cmp qword ptr [rbx + {STAGE} + 8], {ACTION_BYTES}
    jne not_known
    cmp qword ptr [rbx + {STAGE_DATA}], 0           # SIG_DFL
    jne not_known
    mov r8, [rbx + {STAGE_DATA} + 8]
    mov r9, [rbx + {STAGE_DATA} + 16]
    mov r10, [rbx + {STAGE_DATA} + 24]
    cmp qword ptr [rbx + {DEFAULTED}], 0
    je 1f
    cmp r8, [rbx + {DEFAULT}]
    jne not_known
    cmp r9, [rbx + {DEFAULT} + 8]
    jne not_known
    cmp r10, [rbx + {DEFAULT} + 16]
    jne not_known
1:  mov rdi, [r13 + {UC_REGS} + 12 * 8]             # for the old one
    test rdi, rdi
    jz 2f
    mov rax, {LAST_ACTION}
    cmp rdi, rax
    ja not_known
    xor eax, eax
action_start:                       # from here on a fault goes to not_known
    mov [rdi], rax
    mov [rdi + 8], rax
    mov [rdi + 16], rax
    mov [rdi + 24], rax
action_end:
2:  test rsi, rsi
    jz 3f
    mov [rbx + {DEFAULT}], r8
    mov [rbx + {DEFAULT} + 8], r9
    mov [rbx + {DEFAULT} + 16], r10
    mov rax, [rbx + {UNTOUCHED}]
    btr rax, rcx
    mov [rbx + {UNTOUCHED}], rax
    mov rax, [rbx + {DEFAULTED}]
    bts rax, rcx
    mov [rbx + {DEFAULTED}], rax
3:  mov qword ptr [r13 + {UC_RAX}], 0
    jmp go_back

# A call that may be for the file at hand. As above, a kick meanwhile is noted, and found on the way out. What a call leaves
# behind it leaves after all that can fail: by then it is answered.
at_hand:
    mov ecx, [r13 + {UC_REGS} + 8 * 8]
    bts rcx, 32
    cmp rcx, [rbx + {HAND}]
    jne not_known
    cmp dword ptr [r13 + {UC_INFO_ARCH}], {ARCH}
    jne not_known
    mov rdx, {FILE_EPOCH}
    mov rdx, [rdx]
    cmp rdx, [rbx + {HAND_EPOCH}]
    jne not_known
    mov rdi, [r13 + {UC_REGS} + 9 * 8]
    mov rdx, [r13 + {UC_REGS} + 12 * 8]
    mov r12, [rbx + {HAND_POSITION}]
    mov r11, [rbx + {HAND_SIZE}]
    xor r8d, r8d                    # reads
    xor r10d, r10d                  # the result
    xor r14d, r14d                  # bytes read
    mov r9, r12
    mov eax, [r13 + {UC_RAX}]
    mov ecx, [rbx + {HAND_IS_STEADY}]
    cmp eax, {SYS_LSEEK}
    je hand_seek
    cmp eax, {SYS_CLOSE}
    je hand_close
    test ecx, ecx
    jz not_known
    cmp eax, {SYS_READ}
    je hand_read
    cmp eax, {SYS_FSTAT}
    je hand_stat
    cmp eax, {SYS_PREAD}
    je hand_pread
    cmp eax, {SYS_IOCTL}
    je hand_ioctl
    cmp dword ptr [r13 + {UC_REGS} + 2 * 8], {AT_EMPTY_PATH}
    jne not_known
    cmp dword ptr [rbx + {STAGE} + 8], 1    # the NUL
    jne not_known
    mov rdi, rdx
hand_stat:
    lea rsi, [rbx + {HAND_STAT}]
    mov ecx, {HAND_STAT_LEN}
    mov edx, ecx
    jmp hand_copy
hand_seek:
    cmp edx, 1
    je 2f                           # SEEK_CUR
    jb 1f
    cmp edx, 2
    jne not_known
    test ecx, ecx
    jz not_known
    mov r9, r11                     # SEEK_END
    jmp 2f
1:  xor r9d, r9d                    # SEEK_SET
2:  add r9, rdi
    jo not_known
    js not_known
    mov r12, r9
    mov r10, r9
    jmp hand_done
hand_close:
    cmp dword ptr [rbx + {HAND_MAY_CLOSE}], 0
    je not_known
    mov rax, {HAND_CLOSED}
    mov [rbx + {HAND}], rax
    jmp hand_done
hand_ioctl:
    cmp edi, {TCGETS}
    jne not_known
    mov r10, {ENOTTY}
    jmp hand_done
hand_pread:
    mov r9, [r13 + {UC_REGS} + 2 * 8]
    test r9, r9
    js not_known
hand_read:
    lea rcx, [rdx - 1]              # nothing, and too much, are for the Sentry
    cmp rcx, {READ_MAX}
    jae not_known
    mov rcx, r9
    add rcx, rdx
    jo not_known
    inc r8d
    mov r14, r11
    sub r14, r9
    ja 1f
    xor r14d, r14d                  # the end of the file
1:  cmp r14, rdx
    cmova r14, rdx
    mov r10, r14
    mov rcx, r14
    jrcxz 2f                        # nothing to copy
    lea rsi, [r9 + r14]
    cmp rsi, [rbx + {HAND_END}]
    ja not_known
    sub r9, [rbx + {HAND_START}]
    jb not_known
2:  lea rsi, [rbx + r9 + {HAND_DATA}]
    cmp eax, {SYS_READ}
    jne hand_copy
    add r12, r14
hand_copy:
    mov rax, {STUB_BASE}
    cmp rdi, rax
    jae not_known
    add rdx, rdi
    cmp rdx, rax
    ja not_known
hand_start:
    rep movsb
hand_end:
    add [rbx + {HAND_READS}], r8d
    add [rbx + {HAND_READ_BYTES}], r14
hand_done:
    mov [rbx + {HAND_POSITION}], r12
    inc dword ptr [rbx + {HAND_CALLS}]
    mov [r13 + {UC_RAX}], r10
    jmp go_back

# rdi, rsi, rdx, r10, r8, r9 in a ucontext; one more for the argument after the last.
argument_offsets:
    .byte 104, 112, 136, 56, 40, 48, 48, 48

    .balign 8
first_channel:
    .quad {CHANNELS}
last_channel:
    .quad {CHANNELS_LAST}

    .balign 64
    .globl casemate_stub_end
casemate_stub_end:
# What follows in the image is appended by the Sentry before it is sealed. These are the places.
    .set casemate_stub_agent_filter, casemate_stub_start + {AGENT_FILTER}
    .set casemate_stub_thread_filter, casemate_stub_start + {THREAD_FILTER}
    .set casemate_stub_stage_table, casemate_stub_start + {STAGE_TABLE}
    .set casemate_stub_vdso_clock, casemate_stub_start + {VDSO_CLOCK}
