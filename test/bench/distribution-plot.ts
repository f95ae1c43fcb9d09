/** Latency distributions as an SVG: share of reads not yet answered (log) over time (log), one panel per condition. */

export interface Panel {
  readonly title: string;
  readonly series: { readonly name: string; readonly sorted: readonly number[] }[];
}

const COLOURS = ['#888888', '#d1883c', '#2f6db5', '#2e8b57', '#a04078'];
const PANEL = { width: 380, height: 230, left: 52, top: 46, right: 16, bottom: 40 };
const X_RANGE = [0.1, 1000] as const;
const Y_RANGE = [0.001, 1] as const;

function place(value: number, [low, high]: readonly [number, number], length: number): number {
  const clamped = Math.min(high, Math.max(low, value));
  return (Math.log(clamped / low) / Math.log(high / low)) * length;
}

function drawPanel(panel: Panel, originX: number, originY: number): string {
  const width = PANEL.width - PANEL.left - PANEL.right;
  const height = PANEL.height - PANEL.top - PANEL.bottom;
  const parts = [`<g transform="translate(${originX + PANEL.left},${originY + PANEL.top})">`];
  parts.push(`<text x="0" y="-10" font-weight="bold">${panel.title}</text>`);
  for (const tick of [0.1, 1, 10, 100, 1000]) {
    const x = place(tick, X_RANGE, width);
    parts.push(`<path d="M${x} 0V${height}" stroke="#ddd"/>`);
    parts.push(`<text x="${x}" y="${height + 16}" text-anchor="middle">${tick} ms</text>`);
  }
  for (const [tick, label] of [
    [1, 'p0'],
    [0.5, 'p50'],
    [0.1, 'p90'],
    [0.01, 'p99'],
    [0.001, 'p99.9'],
  ] as const) {
    const y = height - place(tick, Y_RANGE, height);
    const fromTop = height - y;
    parts.push(`<path d="M0 ${fromTop}H${width}" stroke="#ddd"/>`);
    parts.push(`<text x="-6" y="${fromTop + 4}" text-anchor="end">${label}</text>`);
  }
  panel.series.forEach(({ sorted }, n) => {
    let path = '';
    for (let step = 0; step <= 120; step++) {
      const left = 0.001 ** (step / 120);
      const value = sorted[Math.min(sorted.length - 1, Math.floor((1 - left) * sorted.length))]!;
      const x = place(value, X_RANGE, width).toFixed(1);
      path += `${step === 0 ? 'M' : 'L'}${x} ${place(left, Y_RANGE, height).toFixed(1)}`;
    }
    parts.push(`<path d="${path}" fill="none" stroke="${COLOURS[n % COLOURS.length]}" stroke-width="2"/>`);
  });
  parts.push('</g>');
  return parts.join('\n');
}

/** The plot as SVG text. Further down is a smaller share of reads; a line that stays left has a short tail. */
export function drawDistributions(title: string, panels: readonly Panel[]): string {
  const columns = 2;
  const width = columns * PANEL.width;
  const height = 60 + Math.ceil(panels.length / columns) * PANEL.height;
  const names = panels[0]?.series.map(({ name }) => name) ?? [];
  const legend = names.map((name, n) => {
    const x = 20 + n * 150;
    const line = `<path d="M${x} 46h24" stroke="${COLOURS[n % COLOURS.length]}" stroke-width="3"/>`;
    return `${line}<text x="${x + 30}" y="50">${name}</text>`;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="11">`,
    `<title>${title}</title>`,
    `<rect width="${width}" height="${height}" fill="white"/>`,
    `<text x="20" y="24" font-size="15" font-weight="bold">${title}</text>`,
    ...legend,
    ...panels.map((panel, n) =>
      drawPanel(panel, (n % columns) * PANEL.width, 60 + Math.floor(n / columns) * PANEL.height),
    ),
    '</svg>',
    '',
  ].join('\n');
}
