// A text table, scrollable with the keyboard if it is wider than its panel. `marked` rows are highlighted.

export default {
  template: `
    <div class="ac-feed" tabindex="0" role="region" :aria-label="label">
      <table v-if="rows.length">
        <thead><tr><th v-for="column in columns" :key="column" scope="col">{{ column }}</th></tr></thead>
        <tbody><tr v-for="(row, n) in rows" :key="n" :class="{marked: marked.includes(n)}">
          <td v-for="(cell, c) in row" :key="c" :title="cell">{{ cell }}</td></tr></tbody>
      </table>
      <p v-else class="ac-empty">{{ empty }}</p>
    </div>`,
  props: { label: String, columns: Array, empty: String, rows: Array, marked: Array },
};
