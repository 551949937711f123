/* Runs a program as on an x86-64 CPU with AVX2 and without AVX-512, VNNI and AMX.
 *
 * Preloaded, it makes the CPUID instruction fault (arch_prctl ARCH_SET_CPUID) and answers in its
 * place, with those instruction sets taken out. Threads and forked children inherit that; a program
 * that is executed preloads it anew. What a program asks for SIGSEGV is remembered, and called for
 * every other fault.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define NOT_POSSIBLE 77 /* as in without_vnni.py */
#define BIT(n) (1u << (n))

typedef int sigaction_function(int, const struct sigaction *, struct sigaction *);

static struct sigaction of_program; /* what the program itself asked for SIGSEGV */

static int real_sigaction(int number, const struct sigaction *wanted, struct sigaction *old) {
  static sigaction_function *found;
  if (!found) found = (sigaction_function *)dlsym(RTLD_NEXT, "sigaction");
  return found(number, wanted, old);
}

static long set_cpuid(int allowed) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

static void mask(unsigned leaf, unsigned subleaf, unsigned *eax, unsigned *ebx, unsigned *ecx,
                 unsigned *edx) {
  if (leaf != 7) return;
  if (subleaf == 0) {
    /* AVX512: F, DQ, IFMA, PF, ER, CD, BW, VL */
    *ebx &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
    /* AVX512: VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
    *ecx &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
    /* AVX512: 4VNNIW, 4FMAPS, VP2INTERSECT; AMX-BF16; AVX512-FP16; AMX-TILE, AMX-INT8 */
    *edx &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
  } else if (subleaf == 1) {
    /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
    *eax &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));
    /* AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16; AVX10 */
    *edx &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19));
  }
}

static void answer_cpuid(greg_t *registers) {
  unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX];
  unsigned eax, ebx, ecx, edx;
  set_cpuid(1);
  __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
  set_cpuid(0);
  mask(leaf, subleaf, &eax, &ebx, &ecx, &edx);
  registers[REG_RAX] = eax, registers[REG_RBX] = ebx;
  registers[REG_RCX] = ecx, registers[REG_RDX] = edx;
  registers[REG_RIP] += 2;
}

static void on_fault(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *instruction = (const unsigned char *)registers[REG_RIP];
  int sent = info->si_code <= 0; /* by kill() or raise(): it does not come again by itself */
  if (info->si_code == SI_KERNEL && instruction[0] == 0x0f && instruction[1] == 0xa2) {
    answer_cpuid(registers);
  } else if (of_program.sa_flags & SA_SIGINFO) {
    of_program.sa_sigaction(number, info, context);
  } else if (of_program.sa_handler != SIG_DFL && of_program.sa_handler != SIG_IGN) {
    of_program.sa_handler(number);
  } else if (!sent || of_program.sa_handler == SIG_DFL) {
    struct sigaction plain = {0};
    plain.sa_handler = SIG_DFL;
    real_sigaction(SIGSEGV, &plain, 0); /* a fault comes again, and ends the program */
    if (sent) raise(SIGSEGV);
  }
}

int sigaction(int number, const struct sigaction *wanted, struct sigaction *old) {
  if (number != SIGSEGV) return real_sigaction(number, wanted, old);
  if (old) *old = of_program;
  if (wanted) of_program = *wanted;
  return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
  struct sigaction wanted = {0}, old = {0};
  wanted.sa_handler = handler;
  wanted.sa_flags = SA_RESTART;
  return sigaction(number, &wanted, &old) ? SIG_ERR : old.sa_handler;
}

__attribute__((constructor)) static void start(void) {
  struct sigaction ours = {0};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  real_sigaction(SIGSEGV, &ours, 0);
  if (set_cpuid(0)) {
    perror("without_vnni: CPUID cannot be masked");
    _exit(NOT_POSSIBLE);
  }
}
